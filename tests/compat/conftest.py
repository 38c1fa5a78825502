"""The frameworks' own suites: a part of each, or by ``--compat`` all of them, and a page of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.compat import page
from tests.compat.environment import Environment, ready
from tests.compat.runs import Run, run
from tests.compat.suites import Suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compat",
        action="store_true",
        help="the frameworks' whole suites, written to docs/reference/compatibility.md",
    )


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the whole suites are run."""
    return request.config.getoption("--compat", default=False)


@pytest.fixture(scope="session")
def tests_of(whole: bool) -> Callable[[Suite], tuple[str, ...]]:
    """What is run of a suite; a part leaves out what is known to fail, often by waiting long."""

    def of(suite: Suite) -> tuple[str, ...]:
        known = {test.name for one in suite.configurations for test in one.known}
        return suite.whole if whole else (*suite.part, *(f"--deselect={name}" for name in known))

    return of


@pytest.fixture(scope="session")
def baseline(tests_of) -> Callable[[Suite], tuple[Environment, Run]]:
    """A suite's environment, and how its tests end without the middleware."""
    known: dict[str, tuple[Environment, Run]] = {}

    def of(suite: Suite) -> tuple[Environment, Run]:
        if suite.name not in known:
            environment = ready(suite)
            known[suite.name] = environment, run(environment, tests_of(suite))
        return known[suite.name]

    return of


@pytest.fixture(scope="session")
def rows(whole: bool) -> Iterator[list[page.Row]]:
    """What is to be told on the page."""
    found: list[page.Row] = []
    yield found
    if whole:
        page.write(found)
