"""The command: what it prints, its exit codes, and how it finds the app."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from retrymw.check import Code
from retrymw.cli import main

ROOT = Path(__file__).parents[2]

SHOP = """
from fastapi import FastAPI
from retrymw import RetryPolicy, rollback_safe
from retrymw.asgi import RetryMiddleware


def create_app(title="Shop", *, policy=None):
    app = FastAPI(title=title, openapi_url=None)
    app.add_middleware(RetryMiddleware, policy=policy)

    @app.get("/items")
    def items(): ...

    @app.post("/orders")
    @rollback_safe(max_replays=2)
    def order(): ...

    return app


class apps:
    good = create_app()
    bad = create_app()


@apps.bad.post("/mails")
def mail(): ...


def broken():
    raise RuntimeError("no such database")


def wrong():
    return create_app(policy="often")


number = 17
"""

TEXT = """\
shop_of_the_check:apps.bad: FastAPI
ASGI RetryMiddleware around /: max_replays=5, deadline=10 s, hold='first-chunk', databases: none

METHODS  PATH     ENDPOINT                                     MARK                           REPLAYED         WHY
GET      /items   shop_of_the_check.create_app.<locals>.items  -                              always           a safe method
POST     /orders  shop_of_the_check.create_app.<locals>.order  @rollback_safe(max_replays=2)  before a commit  @rollback_safe
POST     /mails   shop_of_the_check.mail                       -                              never            no mark

POST /mails: unmarked: shop_of_the_check.mail has no mark, so it is never replayed.
    Mark it @rollback_safe or @idempotent, or @never_replay if that is what you want.
1 finding
"""  # noqa: E501  # a table is as wide as it is

APPS = """
from example_app import fastapi_app, flask_app, starlette_app
from example_app.database import open_database

database = open_database("mysql://shop:secret@127.0.0.1:1/shop")


def create_app(name, protected=True):
    module = {"starlette": starlette_app, "fastapi": fastapi_app, "flask": flask_app}[name]
    return module.create_app(database, protected=protected)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an app, which is imported anew in each test."""
    (tmp_path / "shop_of_the_check.py").write_text(SHOP)
    (tmp_path / "needs_something.py").write_text("import there_is_no_such_module")
    (tmp_path / "fails.py").write_text("1 / 0")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit('set SECRET_KEY')")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def run(folder):
    def run(*arguments):
        return CliRunner().invoke(main, ["check", "--app-dir", str(folder), *arguments])

    return run


def test_text(run):
    """The policy, a table of the routes, and the findings; 1 says that there are findings."""
    result = run("shop_of_the_check:apps.bad")
    assert result.output == TEXT
    assert result.exit_code == 1


def test_page_shows_what_is_printed(run, folder):
    """The app of the how-to is printed as the page says, and all codes are explained there."""
    page = (ROOT / "docs/howto/check.md").read_text()
    [app, *_] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (folder / "shop.py").write_text(app)
    result = run("shop:app")
    assert f"```console\n$ retrymw check shop:app\n{result.output}```" in page
    assert re.findall(r"^\| `([a-z][a-z-]+)` \|", page, re.MULTILINE) == list(get_args(Code))


def test_no_findings(run):
    """0 says that there are none."""
    result = run("shop_of_the_check:apps.good")
    assert result.output.endswith("\n\n0 findings\n")
    assert result.exit_code == 0


def test_exit_zero(run):
    """With --exit-zero the findings are told all the same."""
    result = run("shop_of_the_check:apps.bad", "--exit-zero")
    assert (result.output, result.exit_code) == (TEXT, 0)


def test_ignore(run):
    """What is ignored is left out, and does not count."""
    result = run("shop_of_the_check:apps.bad", "--ignore", "unmarked")
    assert "0 findings" in result.output
    assert result.exit_code == 0


def test_ignore_what_does_not_exist(run):
    """A code that does not exist is wrong usage, and those that do are told."""
    result = run("shop_of_the_check:apps.bad", "--ignore", "unmaked")
    assert result.exit_code == 2
    assert "'unmaked'; allowed: no-middleware, nested" in result.output


def test_json(run):
    """For machines there is the same as JSON."""
    result = run("shop_of_the_check:apps.bad", "--json")
    assert result.exit_code == 1
    checked = json.loads(result.output)
    assert checked["frameworks"] == ["FastAPI"]
    assert [(found["code"], found["place"]) for found in checked["findings"]] == [
        ("unmarked", "POST /mails")
    ]
    assert checked["routes"][1] == {
        "methods": ["POST"],
        "path": "/orders",
        "endpoint": "shop_of_the_check.create_app.<locals>.order",
        "mark": "@rollback_safe(max_replays=2)",
        "before_commit": True,
        "after_commit": False,
        "commit_unknown": False,
        "why": "@rollback_safe",
    }
    [middleware] = checked["middleware"]
    assert middleware["policy"]["deadline"] == 10.0
    assert middleware["policy"]["kinds"] == ["conflict", "disconnection", "too-many-connections"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["shop_of_the_check:create_app()"],
        ["shop_of_the_check:create_app('Shop', policy=None)"],
        ["shop_of_the_check:create_app", "--factory"],
    ],
)
def test_factory(run, arguments):
    """A function that makes the app is called, as by gunicorn or by uvicorn --factory."""
    result = run(*arguments)
    assert (result.exit_code, "/orders" in result.output) == (0, True)


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("shop_of_the_check", "'shop_of_the_check' is not MODULE:APP, such as shop.main:app"),
        ("shop.main:app", "there is no module 'shop'; is --app-dir right?"),
        ("shop_of_the_check.main:app", "there is no module 'shop_of_the_check.main'"),
        ("shop_of_the_check:ap", "module 'shop_of_the_check' has no 'ap'"),
        ("shop_of_the_check:apps.ugly", "module 'shop_of_the_check' has no 'apps.ugly'"),
        ("shop_of_the_check:number", "is 17; allowed: a WSGI or ASGI app"),
        ("shop_of_the_check:create_app(number)", "neither a name nor a call with literals"),
        ("shop_of_the_check:create app", "neither a name nor a call with literals"),
        ("shop_of_the_check:broken()", "RuntimeError: no such database"),
        ("shop_of_the_check:wrong()", "policy is 'often'; allowed: a RetryPolicy"),
        ("needs_something:app", "ModuleNotFoundError: No module named 'there_is_no_such_module'"),
        ("fails:app", "ZeroDivisionError"),
        ("leaves:app", "SystemExit: set SECRET_KEY"),
    ],
)
def test_app_that_can_not_be_checked(run, app, message):
    """2 says that the app can't be checked, and the message says why."""
    result = run(app)
    assert message in result.output
    assert result.exit_code == 2


def retrymw(folder, *arguments, **environment):
    path = os.pathsep.join([str(ROOT), environment.pop("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "retrymw", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_django_urls_that_can_not_be_imported(tmp_path):
    """Django imports its URLs when it is asked for its routes: what fails then is no finding."""
    (tmp_path / "shop.py").write_text(
        "from django.conf import settings\n"
        "from django.core.wsgi import get_wsgi_application\n"
        "from retrymw.integrations.django import Retry\n"
        "settings.configure(ROOT_URLCONF='shop_urls')\n"
        "application = Retry(get_wsgi_application())\n"
    )
    (tmp_path / "shop_urls.py").write_text("import there_is_no_such_module")
    result = retrymw(tmp_path, "check", "shop:application")
    assert "Error: 'shop:application' can't be checked" in result.stderr
    assert "No module named 'there_is_no_such_module'" in result.stderr
    assert result.returncode == 2


@pytest.mark.parametrize("name", ["starlette", "fastapi", "flask"])
def test_example_apps(tmp_path, name):
    """The three apps of the example are as they should be: nothing is found."""
    (tmp_path / "apps.py").write_text(APPS)
    done = retrymw(tmp_path, "check", f"apps:create_app({name!r})", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    checked = json.loads(done.stdout)
    assert checked["middleware"][0]["databases"] == ["retrymw.adapters.pymysql.Database"]
    marks = {
        (method, route["path"]): route["mark"]
        for route in checked["routes"]
        for method in route["methods"]
    }
    assert marks["POST", "/orders"] == "@rollback_safe"
    assert marks["POST", "/products.csv"] == "@idempotent"
    assert marks["GET", "/products.csv"] is None


def test_example_without_retrymw(tmp_path):
    """The same app without RetryMiddleware has that, and nothing else, found."""
    (tmp_path / "apps.py").write_text(APPS)
    done = retrymw(tmp_path, "check", "apps:create_app('fastapi', protected=False)")
    assert done.returncode == 1
    assert "/: no-middleware: no RetryMiddleware was found" in done.stdout
    assert done.stdout.endswith("\n1 finding\n")


def test_without_sqlalchemy():
    """Without SQLAlchemy its commands say what to install; the others work, and so does --help."""
    code = "import sys; sys.modules['sqlalchemy'] = None; import retrymw.cli; retrymw.cli.main()"

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    listed = run("--help")
    assert listed.returncode == 0, listed.stderr
    assert "check" in listed.stdout
    assert run("explain", "1040").returncode == 0
    for command in ("wait", "doctor"):
        done = run(command, "--quiet", "mysql+pymysql://db/shop")
        assert done.returncode == 2
        assert "Needs SQLAlchemy 2: pip install 'retrymw[cli]'." in done.stderr


def test_without_click(tmp_path):
    """Without click the command says what to install."""
    code = "import sys; sys.modules['click'] = None; import retrymw.cli"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "the command retrymw needs click: pip install 'retrymw[cli]'\n"


def test_group():
    """The command is a group, with a help text and the version."""
    result = CliRunner().invoke(main, ["--help"])
    assert "check" in result.output
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
