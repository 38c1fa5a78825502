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

configured = pytest.mark.parametrize(
    ("suite", "configuration"),
    [
        pytest.param(suite, configuration, id=f"{suite.name}-{configuration.name}")
        for suite in SUITES
        for configuration in suite.configurations
    ],
)


@configured
def test_nothing_newly_fails(suite, configuration, baseline, tests_of, whole, rows):
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
            assert Version(environment.version) < Version(test.since), f"not there: {test.name}"


@configured
def test_what_the_middleware_spoils_is_noticed(suite, configuration, baseline):
    """Where every exchange fails, nearly all tests fail: it is the middleware that they call."""
    environment, without = baseline(suite)
    within = run(environment, [suite.sample], replace(configuration, spoiled=True))
    passed = {name for name in without.passed if name.startswith(suite.sample)}
    assert passed
    assert len(passed & within.passed) <= 0.2 * len(passed)


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
