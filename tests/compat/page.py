"""What came of the frameworks' own suites, on every Python here, and the page made of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import Final

from tests.compat.environment import FOLDER, ROOT
from tests.compat.runs import Run
from tests.compat.suites import SUITES, Configuration, Suite

PAGE: Final = ROOT / "docs/reference/compatibility.md"
_RESULTS: Final = "results.json"

_HEAD: Final = """\
# The frameworks' own tests

Starlette, FastAPI, Werkzeug and Flask publish their tests with their source. Here these are run as
they are, and then with the middleware around the apps in them: no test that passes without it may
fail with it ([G5](../explanation/guarantees.md#g5-invisible)). This page is written by the tests
(`make compat`); `make test` runs those of them that touch what the middleware changes.

- *Outside* is around whatever the test client is given, be it an app or three lines of ASGI or
  WSGI, and around what Werkzeug's development server is given. *Inside* is where
  `app.add_middleware()` puts it. *Extension* is `retrymw.integrations.flask.Retry`. The policy is
  the default one; *until return* is `hold="until-return"`.
- *Newly failing* are tests that pass without the middleware, and don't pass with it. Those that
  have to are counted as *by design*, and listed below. One that is not listed is run three times
  more, by itself: it counts unless it then passes each time with the middleware, or fails without.
- *Exchanges* are the requests that went through the middleware. To be sure of it, each of them is
  made to fail as well, with a part of the tests: nearly all of these have to fail.
- The seconds are of one run each, on a small machine that did other things as well.
"""
_COLUMNS: Final = (
    "suite", "middleware", "passed without", "passed with", "newly failing", "by design",
    "exchanges", "seconds without", "seconds with",
)  # fmt: skip
_TABLE: Final = f"""
## Python {{python}}, {{date}}

| {" | ".join(_COLUMNS)} |
|---|---|---:|---:|---:|---:|---:|---:|---:|
"""
_BY_DESIGN: Final = """
## Failing by design

| suite | test | middleware | why |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """A suite in a configuration."""

    suite: str
    version: str
    configuration: str
    passed_without: int
    passed_with: int
    newly_failing: int
    by_design: list[tuple[str, str]]
    exchanges: int
    seconds_without: float
    seconds_with: float

    @classmethod
    def of(
        cls,
        suite: Suite,
        configuration: Configuration,
        without: Run,
        within: Run,
        failing: set[str],
    ) -> Row:
        """What there is to tell of two runs."""
        known = {test.name: test.reason for test in configuration.known}
        return cls(
            suite.name,
            metadata.version(suite.name),
            configuration.name,
            len(without.passed),
            len(within.passed),
            len(failing - known.keys()),
            sorted((name, known[name]) for name in failing & known.keys()),
            within.exchanges,
            without.seconds,
            within.seconds,
        )


def write(rows: Iterable[Row]) -> None:
    """Keep these rows, and write the page from all that are kept, those of other Pythons too."""
    results = FOLDER / _RESULTS
    kept = json.loads(results.read_text())["rows"] if results.exists() else {}
    kept.update({f"{row.suite} {row.configuration}": asdict(row) for row in rows})
    date = datetime.now(timezone.utc).date().isoformat()
    python = ".".join(map(str, sys.version_info[:3]))
    results.write_text(json.dumps({"python": python, "date": date, "rows": kept}, indent=1))
    found = [json.loads(path.read_text()) for path in FOLDER.parent.glob(f"compat-*/{_RESULTS}")]
    found.sort(key=lambda one: [int(part) for part in one["python"].split(".")])
    PAGE.write_text(_HEAD + "".join(map(_table, found)) + _by_design(found))


def _table(found: dict) -> str:
    order = [f"{suite.name} {one.name}" for suite in SUITES for one in suite.configurations]
    lines = (_line(Row(**found["rows"][key])) for key in order if key in found["rows"])
    return _TABLE.format(**found) + "".join(lines)


def _line(row: Row) -> str:
    cells = [
        f"{row.suite} {row.version}", row.configuration, row.passed_without, row.passed_with,
        row.newly_failing, len(row.by_design), row.exchanges,
        f"{row.seconds_without:.0f}", f"{row.seconds_with:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |\n"


def _by_design(found: list[dict]) -> str:
    seen: dict[tuple[str, str, str], set[str]] = {}
    for row in (Row(**row) for one in found for row in one["rows"].values()):
        for name, reason in row.by_design:
            seen.setdefault((row.suite, name, reason), set()).add(row.configuration)
    lines = (
        f"| {suite} | `{name}` | {', '.join(sorted(where))} | {reason} |\n"
        for (suite, name, reason), where in sorted(seen.items())
    )
    return _BY_DESIGN + "".join(lines)
