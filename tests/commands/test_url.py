"""URLs as people have them, and that nobody sees the password in one."""

import sys

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url

from retrymw.commands._database import Database
from retrymw.commands.doctor import doctor
from retrymw.commands.wait import wait
from tests.commands.helpers import MYSQL, POSTGRESQL, spelled, url_of

PASSWORD = "s3cr€t/p@ss:w#rd?%40"
COMMANDS = [wait, doctor]


def refused(command, *arguments, **options):
    result = CliRunner().invoke(command, arguments, **options)
    assert result.exit_code == 2
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3cret", "It can't be read"),
        ("mysql:app:s3cret@host/db", "It can't be read"),
        ("mysql+pymysql://app:s3cret@host:port/db", "a number for a port"),
        ("mysql+pymysql://app:p@s3cret@host/db", "%40 has to stand for an @"),
        ("mysql+pymysql://app:p@s3/cret@host/db", "%40 has to stand for an @"),
        ("postgres://app:s3cret@host/db", "It is spelled postgresql://"),
        ("mysql+nothing://app:s3cret@host/db", "SQLAlchemy knows no mysql+nothing://"),
        ("nothing://app:s3cret@host/db", "SQLAlchemy knows no nothing://"),
        ("oracle+oracledb://app:s3cret@host/db", "not among the known drivers"),
    ],
)
def test_wrong_url(command, url, told):
    """A wrong URL ends with status 2 at once, says what is wrong, and nothing of the password."""
    output = refused(command, url)
    assert told in " ".join(output.split())
    assert "s3" not in output
    assert "cret" not in output


@pytest.mark.parametrize("command", COMMANDS)
def test_no_url(command):
    """Without a URL the environment's is taken; without that one it says what is missing."""
    assert "Missing argument" in refused(command, env={"DATABASE_URL": ""})
    told = refused(command, env={"DATABASE_URL": "postgres://app:s3cret@host/db"})
    assert "It is spelled postgresql://" in told
    assert "DATABASE_URL" in CliRunner().invoke(command, ["--help"]).output


@pytest.mark.parametrize(
    ("url", "module", "told"),
    [
        ("mysql://h/d", "MySQLdb", "Spell it mysql+pymysql://, or try: pip install 'mysqlclient'"),
        ("mysql+asyncmy://h/d", "asyncmy", "pip install 'asyncmy'"),
        ("postgresql+psycopg2://h/d", "psycopg2", "Spell it postgresql+psycopg://"),
    ],
)
def test_driver_not_installed(monkeypatch, url, module, told):
    """A driver that is missing ends with status 2, and says which is there, and how to get it."""
    monkeypatch.setitem(sys.modules, module, None)
    output = " ".join(refused(wait, url).split())
    assert f"needs {module}, which is not installed" in output
    assert told in output


def test_no_driver_at_all(monkeypatch):
    """Where none is installed, none is recommended."""
    modules = ("MySQLdb", "aiomysql", "asyncmy", "mariadb", "mysql.connector", "mysql", "pymysql")
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    output = " ".join(refused(wait, "mysql+pymysql://h/d").split())
    assert "not installed. Try: pip install 'PyMySQL'" in output


@pytest.mark.parametrize("driver", [*MYSQL, *POSTGRESQL])
@pytest.mark.parametrize("command", ["wait", "doctor"])
def test_password_is_never_shown(request, driver, command):
    """Whatever goes wrong, wherever the password stands: it is not in the output."""
    server = request.getfixturevalue("mariadb" if "mysql" in driver else "postgresql")
    name = "passwd" if driver in ("mysql+aiomysql", "mysql+asyncmy") else "password"
    good = make_url(url_of(server, driver))
    wrong = good.set(password=PASSWORD)
    in_query = URL.create(driver, "app", None, "127.0.0.1", server.port, "app", {name: PASSWORD})
    urls = [
        wrong,
        wrong.set(port=1),
        wrong.set(database="nope"),
        wrong.set(port=99999),
        wrong.update_query_dict({"nonsense": "1"}),
        wrong.update_query_dict({"plugin": "nonsense"}),
        in_query,
        in_query.set(port=1),
        in_query.update_query_dict({"nonsense": "1"}),
    ]
    chosen, often = (wait, ["--timeout", "0"]) if command == "wait" else (doctor, [])
    for url in urls:
        result = CliRunner().invoke(chosen, [spelled(url), *often])
        assert result.exit_code in (1, 2), (url, result.output)
        assert isinstance(result.exception, SystemExit), (url, result.exception)
        for secret in (PASSWORD, PASSWORD[:6], PASSWORD[-8:], "s3cr", "s3cr%E2%82%ACt"):
            assert secret not in result.output, url


@given(st.text(min_size=1, max_size=30).filter(lambda text: text not in "mysql://app@db/shop"))
def test_password_in_an_exception(password):
    """A driver that has the password in its message does not give it away, in any spelling."""
    url = URL.create("mysql+pymysql", "app", password, "db", None, "shop", {"ssl_passwd": password})
    database = Database(url, 5)
    if password in database.name:
        return
    for text in (password, spelled(url), f"prefix {password} suffix"):
        assert password not in database.said(ValueError(text)).replace("***", "")
    assert password not in database.name


def test_password_like_the_user():
    """That the password is the user's name can't be guessed from what is left out."""
    database = Database(make_url("mysql+pymysql://app:app@db/shop"), 5)
    assert database.said(ValueError("Access denied for user 'app'")).endswith("user 'app'")
