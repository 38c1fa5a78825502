"""Runs of the frameworks' own tests, and what differs between two of them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final

from tests.compat.environment import Environment
from tests.compat.suites import WITHOUT, Configuration

_PLUGIN: Final = Path(__file__).with_name("plugin")
_MOST_SECONDS: Final = 900
_TEST_SECONDS: Final = 20  # as FastAPI has it
_AGAIN: Final = 3


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        outcomes: of each test, by its name: passed, failed, skipped or xfailed.
        exchanges: how many went through the middleware.
        seconds: that the run took.
    """

    outcomes: Mapping[str, str]
    exchanges: int
    seconds: float

    @property
    def passed(self) -> set[str]:
        """The names of the tests that passed."""
        return {name for name, outcome in self.outcomes.items() if outcome == "passed"}


def run(
    environment: Environment, tests: Iterable[str], configuration: Configuration = WITHOUT
) -> Run:
    """Run tests of the suite, without the middleware or as configured.

    Args:
        environment: of the suite.
        tests: files or names of tests, and options of pytest.
        configuration: where the middleware goes.

    Raises:
        RuntimeError: pytest could not run them; with what it said.
    """
    suite = environment.suite
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = os.pathsep.join([str(_PLUGIN), suite.path])
    env["RETRYMW_POSITION"] = configuration.position
    env["RETRYMW_POLICY"] = json.dumps(configuration.policy)
    env["RETRYMW_SPOILED"] = "yes" if configuration.spoiled else ""
    with TemporaryDirectory() as folder:
        report, base = Path(folder, "report.jsonl"), Path(folder, "base")
        command = [
            environment.python, "-m", "pytest", "-p", "retrymw_compat", "-p", "no:cacheprovider",
            f"--timeout={_TEST_SECONDS}", f"--report-log={report}", f"--basetemp={base}",
            *tests,
        ]  # fmt: skip
        began = monotonic()
        done = subprocess.run(
            command,
            cwd=environment.source,
            env=env,
            check=False,
            timeout=_MOST_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = monotonic() - began
        if done.returncode not in (0, 1):  # all passed, or some failed
            raise RuntimeError(f"{suite.name}: {done.stdout[-5000:]}")
        return _read(report, seconds)


def _read(report: Path, seconds: float) -> Run:
    outcomes: dict[str, str] = {}
    exchanges = 0
    for line in report.read_text().splitlines():
        told = json.loads(line)
        if told["$report_type"] != "TestReport":
            continue
        name = told["nodeid"]
        if outcomes.get(name, "passed") == "passed":  # a test has three parts
            outcomes[name] = "xfailed" if "wasxfail" in told else told["outcome"]
        if told["when"] == "teardown":
            exchanges += sum(n for key, n in told["user_properties"] if key == "exchanges")
    return Run(outcomes, exchanges, seconds)


def newly_failing(
    environment: Environment, configuration: Configuration, without: Run, within: Run
) -> set[str]:
    """The tests that pass without the middleware, and not with it.

    Some tests fail now and then. What is not known to fail is run three times more, by itself,
    with the middleware and without: it counts unless it passes each time with it, or fails
    without it too.
    """
    failing = without.passed - within.passed
    known = {test.name for test in configuration.known}
    doubtful = sorted(failing - known)
    if not doubtful:
        return failing
    passes_with = _always_pass(environment, doubtful, configuration)
    passes_without = _always_pass(environment, doubtful, WITHOUT)
    return failing - passes_with - (set(doubtful) - passes_without)


def _always_pass(
    environment: Environment, tests: list[str], configuration: Configuration
) -> set[str]:
    runs = (run(environment, tests, configuration) for _ in range(_AGAIN))
    return set.intersection(*(done.passed for done in runs))
