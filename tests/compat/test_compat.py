"""The frameworks' own published tests pass with the middleware around their apps as without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.version import Version

from tests.compat.environment import ready
from tests.compat.page import Row
from tests.compat.runs import Run, newly_failing, run
from tests.compat.suites import SUITES

# For the making of an environment; the runs have bounds of their own.
pytestmark = pytest.mark.timeout(3600)

_BY_NAME = {suite.name: suite for suite in SUITES}


def pytest_generate_tests(metafunc):
    if "configuration" in metafunc.fixturenames:
        configurations = _BY_NAME[metafunc.cls.name].configurations
        ids = [configuration.name for configuration in configurations]
        metafunc.parametrize("configuration", configurations, ids=ids)


class OfASuite:
    """Each suite is a class, so that processes side by side can share them."""

    name: str

    @pytest.fixture
    def suite(self):
        return _BY_NAME[self.name]

    def test_nothing_newly_fails(self, suite, configuration, baseline, tests_of, whole, rows):
        """G5: each test that passes without the middleware passes with it, but for those listed."""
        environment, without = baseline(suite)
        within = run(environment, tests_of(suite), configuration)
        failing = newly_failing(environment, configuration, without, within)
        listed = {test.name for test in configuration.known}
        rows.append(Row.of(suite, configuration, without, within, failing))
        assert failing <= listed, f"newly failing: {sorted(failing - listed)}"
        assert within.exchanges >= configuration.exchanges * len(within.passed)
        for test in configuration.known if whole else ():
            if test.name in within.outcomes:
                assert test.name in failing, f"listed, and does not fail: {test.name}"
            else:
                assert Version(environment.version) < Version(test.since), f"missing: {test.name}"

    def test_what_the_middleware_spoils_is_noticed(self, suite, configuration, baseline):
        """Where every exchange fails, nearly all tests do: it is the middleware that they call."""
        environment, without = baseline(suite)
        within = run(environment, [suite.sample], replace(configuration, spoiled=True))
        passed = {name for name in without.passed if name.startswith(suite.sample)}
        assert passed
        assert len(passed & within.passed) <= 0.2 * len(passed)


class TestStarlette(OfASuite):
    name = "starlette"


class TestFastAPI(OfASuite):
    name = "fastapi"


class TestWerkzeug(OfASuite):
    name = "werkzeug"


class TestFlask(OfASuite):
    name = "flask"


def test_no_suite_is_forgotten():
    """Each has its class."""
    assert {cls.name for cls in OfASuite.__subclasses__()} == {*_BY_NAME}


def test_what_fails_once_only_does_not_count():
    """What newly fails counts if it does so again by itself, and doesn't if it then passes."""
    [flask] = (suite for suite in SUITES if suite.name == "flask")
    environment = ready(flask)
    without = run(environment, [flask.sample, "tests/test_json_tag.py"])  # the latter calls no app
    within = Run(dict.fromkeys(without.outcomes, "failed"), 0, 0)
    spoiled = replace(flask.configurations[0], spoiled=True)
    failing = newly_failing(environment, spoiled, without, within)
    calls = {name for name in without.passed if name.startswith(flask.sample)}
    assert failing <= calls < without.passed
    assert len(failing) >= 0.8 * len(calls)
