"""What an import loads, and that there is nothing public which cannot be imported."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

EVENT_LOOPS = {"anyio", "asyncio", "trio"}
DRIVERS = {"MySQLdb", "psycopg", "psycopg2", "pymysql", "sqlite3"}
THIRD_PARTIES = DRIVERS | {"django", "fastapi", "flask", "sqlalchemy", "starlette", "werkzeug"}

WITHOUT_EXTRAS = [
    "retrymw",
    "retrymw.classify",
    "retrymw.exceptions",
    "retrymw.marks",
    "retrymw.typing",
    "retrymw.wsgi",
]

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.glob("retrymw/**/*.py"))
]
PUBLIC = [name for name in MODULES if "._" not in name]

pytestmark = pytest.mark.timeout(300)  # whichever test comes first builds and installs


@pytest.fixture(params=["bare", "with_everything"])
def python(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["with_asgi", "with_everything"])
def asgi_python(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("module", WITHOUT_EXTRAS)
def test_needs_no_extra_and_loads_no_third_party(python, module):
    assert not python.modules_after(f"import {module}") & THIRD_PARTIES


def test_face_loads_no_shell_and_no_event_loop(python):
    loaded = python.modules_after("import retrymw")
    assert not loaded & {"retrymw.asgi", "retrymw.wsgi", "retrymw.testing"}
    assert not loaded & EVENT_LOOPS


def test_wsgi_loads_no_event_loop(python):
    loaded = python.modules_after("import retrymw.wsgi")
    assert "retrymw.asgi" not in loaded
    assert not loaded & EVENT_LOOPS


def test_asgi_loads_no_third_party(asgi_python):
    loaded = asgi_python.modules_after("import retrymw.asgi")
    assert "retrymw.wsgi" not in loaded
    assert not loaded & THIRD_PARTIES


def test_the_face():
    retrymw = importlib.import_module("retrymw")
    assert set(retrymw.__all__) >= {
        "RetryPolicy",
        "idempotent",
        "rollback_safe",
        "never_replay",
        "current_attempt",
        "RetryableError",
        "DisconnectionError",
        "TooManyConnections",
        "TransactionConflict",
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(names) == len(set(names))
