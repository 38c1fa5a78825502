"""A pytest plugin for the frameworks' own test runs: it puts the middleware in, and counts."""

import os
from pathlib import Path

import pytest
import retrymw_positions

_SITECUSTOMIZE = """\
import sys
from pathlib import Path

sys.path.append({here!r})
import retrymw_positions

exchanges = Path({exchanges!r}).open("ab", buffering=0)
retrymw_positions.install(lambda: exchanges.write(b"."))
"""

_exchanges = 0


def _count():
    global _exchanges  # noqa: PLW0603  # one for each process
    _exchanges += 1
    if os.environ["RETRYMW_SPOILED"]:
        raise RuntimeError("spoiled")


@pytest.fixture(autouse=True)
def _retrymw(request, record_property):
    """Tell how many exchanges there are in a test, Werkzeug's server process included."""
    before, served = _exchanges, None
    if "dev_server" in request.fixturenames:  # that process imports from this folder only
        folder = request.getfixturevalue("tmp_path")
        served = folder.with_name(f"{folder.name}-exchanges")  # its reloader watches the folder
        (folder / "sitecustomize.py").write_text(
            _SITECUSTOMIZE.format(here=os.fspath(Path(__file__).parent), exchanges=str(served))
        )
    yield
    there = served.stat().st_size if served is not None and served.exists() else 0
    record_property("exchanges", _exchanges - before + there)


# Not in a hook: the workers of xdist load plugins late, and the tests import by name.
retrymw_positions.install(_count)
