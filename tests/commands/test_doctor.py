"""`retrymw doctor`: each hint is right, because the condition is real."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import MySQLdb
import psycopg
import pymysql
import pytest
from click.testing import CliRunner

from retrymw.commands.doctor import doctor
from retrymw.testing.servers import MariaDB, PostgreSQL, embedded_postgresql
from tests.commands.helpers import MYSQL, POSTGRESQL, url_of
from tests.servers.pgbouncer import PgBouncer
from tests.servers.situations.base import wait_until

PYMYSQL, PSYCOPG = MYSQL[0], POSTGRESQL[0]
LIMIT = 20  # connections of each of the servers


def ask(server, *arguments, driver=None, **changes):
    """The exit status, and what --json tells."""
    driver = driver or (PYMYSQL if isinstance(server, MariaDB) else PSYCOPG)
    result = CliRunner().invoke(doctor, [url_of(server, driver, **changes), "--json", *arguments])
    assert result.exit_code in (0, 1), result.output
    told = json.loads(result.stdout)
    severities = {finding["severity"] for finding in told["findings"]}
    assert result.exit_code == ("warning" in severities)
    return told


def finding(told, about, severity=None):
    """The one that is about something."""
    found = [one for one in told["findings"] if about in one["what"]]
    assert len(found) == 1, told["findings"]
    if severity is not None:
        assert found[0]["severity"] == severity
    return found[0]


def is_silent(told, about):
    return not any(about in one["what"] for one in told["findings"])


def pool(workers, size, overflow=0):
    return ["--workers", str(workers), "--pool-size", str(size), "--overflow", str(overflow)]


@contextmanager
def connected(number: int, connect) -> Iterator[list]:
    """Connections that somebody holds."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(connect())) for _ in range(number)]


@pytest.fixture
def fresh(mariadb) -> Iterator[MariaDB]:
    """The MariaDB server, with its counters at zero; the account's limits are undone."""
    mariadb.execute("FLUSH STATUS")
    yield mariadb
    mariadb.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 0 MAX_CONNECTIONS_PER_HOUR 0")
    mariadb.execute("SET GLOBAL wait_timeout = DEFAULT")
    mariadb.execute("FLUSH USER_RESOURCES")


@pytest.fixture
def role(postgresql) -> Iterator[PostgreSQL]:
    """The PostgreSQL server; what is changed of the role and the database is undone."""
    yield postgresql
    postgresql.execute("ALTER ROLE app CONNECTION LIMIT -1")
    postgresql.execute("ALTER DATABASE app CONNECTION LIMIT -1")
    postgresql.execute("ALTER ROLE app RESET ALL")
    postgresql.execute("REVOKE pg_monitor FROM app")


@pytest.fixture(params=["fresh", "role"])
def server(request):
    return request.getfixturevalue(request.param)


class TestEverywhere:
    @pytest.mark.parametrize("driver", [*MYSQL, *POSTGRESQL])
    def test_every_driver(self, request, driver):
        """The report is the same whatever the driver."""
        server = request.getfixturevalue("fresh" if driver in MYSQL else "role")
        told = ask(server, *pool(2, 3), driver=driver)
        assert told["url"] == f"{driver}://app@127.0.0.1:{server.port}/app"
        assert told["report"]["server"].startswith(type(server).__name__)
        limit = told["report"]["limits"][0]
        assert (limit["name"], limit["most"], limit["ours"]) == ("max_connections", LIMIT, 0)
        assert finding(told, "There are enough connections", "ok")

    def test_enough_is_enough(self, server):
        """What is said to fit does fit: that many connections can be opened, and not one more."""
        assert finding(ask(server, *pool(4, 3, 2)), "There are enough connections", "ok")
        told = ask(server, *pool(3, 5, 2))
        short = finding(told, "max_connections will run dry", "warning")
        assert "3 * (5 + 2) = 21" in short["why"]
        assert "at most 6 in each of the 3 workers" in short["set"]
        with server.fill() as taken:
            assert taken == LIMIT

    def test_others_are_counted(self, server):
        """What others hold is not there for the app; what this account holds is the app's."""
        admin = server.execute
        if isinstance(server, MariaDB):
            admin("CREATE USER IF NOT EXISTS other@'%' IDENTIFIED BY 'other'")
            connect = pymysql.connect
        else:
            connect = psycopg.connect
            if not admin("SELECT 1 FROM pg_roles WHERE rolname = 'other'"):
                admin("CREATE ROLE other LOGIN PASSWORD 'other'")
        named = server.connect_args(user="other", password="other")
        named.pop("database", None)
        own = server.connect_args()
        with (
            connected(5, lambda: connect(**named)),
            connected(3, lambda: connect(**own)),
        ):
            told = ask(server, *pool(4, 4))
            limit = told["report"]["limits"][0]
            assert (limit["others"], limit["ours"]) == (5, 3)
            short = finding(told, "max_connections will run dry", "warning")
            assert "there are 15 for them" in short["what"]
            assert "at most 3 in each of the 4 workers" in short["set"]
            assert str(16 + 5 + limit["reserved"]) in short["set"]

    def test_not_one_for_each_worker(self, server):
        """With more workers than connections it says so, and not "at most 0"."""
        short = finding(ask(server, *pool(30, 1)), "will run dry", "warning")
        assert "fewer workers" in short["set"]

    def test_deployment(self, server):
        """Enough for the workers, and not for the old and the new ones at once."""
        told = ask(server, *pool(4, 3))
        assert "24 connections" in finding(told, "A deployment", "notice")["why"]
        assert is_silent(ask(server, *pool(4, 2)), "A deployment")

    def test_nearly_used_up(self, server):
        """That few are left right now is worth a warning before the first is refused."""
        own = server.connect_args()
        connect = pymysql.connect if isinstance(server, MariaDB) else psycopg.connect
        with connected(17, lambda: connect(**own)):
            told = ask(server)
            assert "17 of 20" in finding(told, "max_connections is nearly", "warning")["what"]
        with connected(10, lambda: connect(**own)):
            assert is_silent(ask(server), "nearly used up")

    def test_nobody_is_let_in(self, server):
        """That doctor itself is not let in is the diagnosis: status 1."""
        with server.fill():
            told = ask(server)
        assert told["report"] is None
        shut = finding(told, "does not let us in; it is full", "warning")
        assert "All connections that this account can have are taken" in shut["why"]

    def test_is_not_there(self, server):
        """A server that is not there is told of, and is no shortage: status 1."""
        told = ask(server, port=1)
        assert finding(told, "it is not there yet", "warning")["why"] == ""

    def test_wrong_password(self, server):
        """A wrong password is no diagnosis: status 2."""
        driver = PYMYSQL if isinstance(server, MariaDB) else PSYCOPG
        result = CliRunner().invoke(doctor, [url_of(server, driver, password="s3cret")])
        assert result.exit_code == 2
        assert "s3cret" not in result.output

    def test_threads(self, server):
        """More requests at once than connections in the pool: those will wait for each other."""
        told = ask(server, "--threads", "16", *pool(1, 5, 10))
        assert "share 15 connections" in finding(told, "The pool will run dry", "warning")["what"]
        assert is_silent(ask(server, "--threads", "15", *pool(1, 5, 10)), "The pool will run dry")

    def test_plain_words(self, server):
        """Without --json it is text: what, why, what to set, the worst first."""
        driver = PYMYSQL if isinstance(server, MariaDB) else PSYCOPG
        line = [url_of(server, driver), *pool(4, 5, 10), "--threads", "2"]
        result = CliRunner().invoke(doctor, line)
        assert result.exit_code == 1
        said = " ".join(result.output.split())
        assert f"{driver}://app@127.0.0.1:{server.port}/app" in said
        assert "WARNING max_connections will run dry: the workers may open 60 connections" in said
        assert "Set: pool_size + max_overflow at most 5 in each of the 4 workers; or" in said
        assert result.output.index("WARNING") < result.output.index("NOTICE")

    def test_changes_nothing(self, server):
        """It leaves no connection, and the settings as they are."""
        ask(server)
        assert server.connection_count() == 0


class TestMariaDB:
    def test_limit_of_the_account(self, fresh):
        """A limit of the account is found without any privilege, and is the one that counts."""
        fresh.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 5")
        told = ask(fresh, *pool(2, 3))
        short = finding(told, "max_user_connections will run dry", "warning")
        assert "at most 2 in each of the 2 workers" in short["set"]
        assert "ALTER USER 'app'@'%' WITH MAX_USER_CONNECTIONS 6" in short["set"]
        with connected(5, lambda: pymysql.connect(**fresh.connect_args())):
            refused = finding(ask(fresh), "does not let us in", "warning")
        assert "it is full" in refused["what"]

    def test_advice_for_the_account_helps(self, fresh):
        """What it says to set, set, is enough."""
        fresh.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 5")
        short = finding(ask(fresh, *pool(2, 3)), "max_user_connections")
        fresh.execute(short["set"].partition("; or ")[2])
        assert finding(ask(fresh, *pool(2, 3)), "There are enough connections", "ok")

    def test_limit_was_reached(self, fresh):
        """That all connections were in use once is remembered by the server, and told."""
        assert is_silent(ask(fresh), "were in use at once")
        with fresh.fill():
            pass
        told = ask(fresh)
        assert finding(told, "were in use at once", "warning")
        assert told["report"]["facts"]["Max_used_connections"] >= LIMIT

    def test_refusals(self, fresh):
        """Refusals of many at once are counted in a counter of their own: the number is told."""
        with fresh.fill(), socket.create_connection((fresh.host, fresh.port), timeout=10) as extra:
            assert extra.recv(1)  # it has the place that is kept for an administrator
            with pytest.raises(pymysql.OperationalError):
                pymysql.connect(**fresh.connect_args())
        told = ask(fresh)
        assert told["report"]["facts"]["Connection_errors_max_connections"] >= 1
        assert "counts 0 refusals" not in finding(told, "were in use at once")["why"]

    def test_refusals_before_the_limit_was_raised(self, fresh):
        """Once there are more, that some were refused is past: worth a notice, status 0."""
        with fresh.fill(), socket.create_connection((fresh.host, fresh.port), timeout=10) as extra:
            assert extra.recv(1)  # it has the place that is kept for an administrator
            with pytest.raises(pymysql.OperationalError):
                pymysql.connect(**fresh.connect_args())
        fresh.execute(f"SET GLOBAL max_connections = {10 * LIMIT}")
        try:
            told = ask(fresh)
        finally:
            fresh.execute(f"SET GLOBAL max_connections = {LIMIT}")
        assert all(one["severity"] != "warning" for one in told["findings"])
        assert is_silent(told, "were in use at once")
        refused = finding(told, "were refused", "notice")
        assert f"max_connections was lower then: it is {10 * LIMIT}" in refused["why"]

    def test_aborted_connects(self, fresh):
        """Connects that came to nothing are told of, with what they may have been."""
        assert is_silent(ask(fresh), "came to nothing")
        with pytest.raises(pymysql.OperationalError):
            pymysql.connect(**fresh.connect_args(password="wrong"))
        told = finding(ask(fresh), "connects came to nothing", "notice")
        assert told["what"].startswith("1 connects")

    def test_wait_timeout_and_recycle(self, fresh):
        """The pool has to renew connections before the server ends them."""
        fresh.execute("SET GLOBAL wait_timeout = 100")
        late = finding(ask(fresh, "--recycle", "100"), "dead connections", "warning")
        assert "only after 100 s" in late["what"]
        assert "pool_recycle=75" in late["set"]
        never = finding(ask(fresh, "--recycle", "-1"), "dead connections", "warning")
        assert "it renews them never" in never["what"]
        assert finding(ask(fresh, "--recycle", "75"), "The pool renews connections", "ok")
        assert "pool_recycle=75" in finding(ask(fresh), "idle for 100 s", "notice")["set"]

    def test_idle_connection_ends_as_told(self, fresh):
        """The code that it says the app will meet is the one that an idle connection ends with."""
        fresh.execute("SET GLOBAL wait_timeout = 1")
        told = finding(ask(fresh, "--recycle", "-1"), "dead connections")
        with closing(MySQLdb.connect(**fresh.connect_args())) as connection:
            wait_until(lambda: fresh.connection_count() == 0)
            with pytest.raises(MySQLdb.OperationalError) as caught:
                connection.query("SELECT 1")
        assert told["why"].endswith(f"explain {caught.value.args[0]}")

    def test_connects_per_hour(self, fresh):
        """A limit of connects per hour is compared with what pools and their renewals need."""
        fresh.execute("ALTER USER app@'%' WITH MAX_CONNECTIONS_PER_HOUR 100")
        told = ask(fresh, *pool(2, 3), "--recycle", "60")
        often = finding(told, "100 times per hour", "warning")
        assert "360 times per hour" in often["why"]
        assert "MAX_CONNECTIONS_PER_HOUR 0" in often["set"]
        assert finding(ask(fresh, *pool(2, 3)), "100 times per hour", "notice")

    def test_without_process(self, fresh):
        """Whose connections could not be seen is told; with PROCESS they are."""
        fresh.execute("CREATE USER IF NOT EXISTS other@'%' IDENTIFIED BY 'other'")
        named = fresh.connect_args(user="other", password="other", database=None)
        with connected(2, lambda: pymysql.connect(**named)):
            told = ask(fresh)
            assert "2 of the connections" in finding(told, "could not be seen", "notice")["what"]
            assert told["report"]["holders"] == {}
            told = ask(fresh, username="admin", password=fresh._secret)
            assert is_silent(told, "could not be seen")
            assert told["report"]["holders"]["other"] == 2

    def test_password_hash_is_not_told(self, fresh):
        """What the server says of the account is not passed on."""
        [(said,)] = fresh.execute("SHOW CREATE USER app@'%'")
        secret = said.split("PASSWORD '")[1].split("'")[0]
        assert secret not in json.dumps(ask(fresh))


class TestPostgreSQL:
    def test_reserved_for_superusers(self, role):
        """What is reserved is not there for the app, and is for a superuser."""
        told = ask(role)
        limit = told["report"]["limits"][0]
        reserved = told["report"]["facts"]["superuser_reserved_connections"]
        assert limit["most"] + reserved == told["report"]["facts"]["max_connections"]
        query = {"host": str(role.folder), "port": str(role.port)}
        superuser = ask(role, username="postgres", password=None, host=None, port=None, query=query)
        assert superuser["report"]["limits"][0]["most"] == limit["most"] + reserved

    def test_superuser_sees_who_has_them(self, role):
        """While the app is not let in, an account for which one is reserved is, and sees who is."""
        query = {"host": str(role.folder), "port": str(role.port)}
        with role.fill():
            told = ask(role, username="postgres", password=None, query=query)
        assert told["report"]["holders"]["app"] == LIMIT

    def test_limit_of_the_role(self, role):
        """A limit of the role is the one that counts; what it says to set is enough."""
        role.execute("ALTER ROLE app CONNECTION LIMIT 5")
        short = finding(ask(role, *pool(2, 3)), "role app will run dry", "warning")
        assert "at most 2 in each of the 2 workers" in short["set"]
        wait_until(lambda: role.connection_count() == 0)
        with connected(5, lambda: psycopg.connect(**role.connect_args())):
            assert "it is full" in finding(ask(role), "does not let us in")["what"]
        role.execute(short["set"].partition("; or ")[2])
        assert finding(ask(role, *pool(2, 3)), "There are enough connections", "ok")

    def test_limit_of_the_database(self, role):
        """So is a limit of the database."""
        role.execute("ALTER DATABASE app CONNECTION LIMIT 5")
        short = finding(ask(role, *pool(2, 3)), "database app will run dry", "warning")
        role.execute(short["set"].partition("; or ")[2])
        assert finding(ask(role, *pool(2, 3)), "There are enough connections", "ok")

    def test_idle_session_timeout_and_recycle(self, role):
        """The role's own settings are what the pool's renewal is compared with."""
        assert is_silent(ask(role, "--recycle", "-1"), "dead connections")
        role.execute("ALTER ROLE app SET idle_session_timeout = '100s'")
        late = finding(ask(role, "--recycle", "-1"), "dead connections", "warning")
        assert "pool_recycle=75" in late["set"]
        assert "57P05" in late["why"]
        assert finding(ask(role, "--recycle", "75"), "The pool renews connections", "ok")

    def test_idle_in_transaction(self, role):
        """A limit for idle transactions is told, with the code that the app meets."""
        role.execute("ALTER ROLE app SET idle_in_transaction_session_timeout = '3s'")
        told = finding(ask(role), "transaction is idle for 3 s", "notice")
        assert "25P03" in told["why"]

    def test_without_pg_monitor(self, role):
        """What could not be seen is told; a member of pg_monitor sees it."""
        assert "GRANT pg_monitor" in finding(ask(role), "could not be seen", "notice")["set"]
        role.execute("GRANT pg_monitor TO app")
        assert is_silent(ask(role), "could not be seen")

    @pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql+asyncpg", PSYCOPG])
    def test_behind_pgbouncer(self, role, driver):
        """PgBouncer is recognised: the workers' connections end there, and are not counted."""
        with PgBouncer(
            role, settings={"ignore_startup_parameters": "extra_float_digits"}
        ) as pooler:
            told = ask(role, *pool(40, 5), driver=driver, port=pooler.port)
            assert finding(told, "There is a pooler between us", "notice")
            assert is_silent(told, "will run dry")
        assert is_silent(ask(role, driver=driver), "There is a pooler")


def test_reserved_connections():
    """PostgreSQL 16 reserves connections for a role: they are there for its members only."""
    settings = {"reserved_connections": 3}
    with embedded_postgresql(max_connections=10, settings=settings) as server:
        assert ask(server)["report"]["limits"][0]["most"] == 7
        with server.fill() as taken:
            assert taken == 7
        server.execute("GRANT pg_use_reserved_connections TO app")
        assert ask(server)["report"]["limits"][0]["most"] == 10
        with server.fill() as taken:
            assert taken == 10


def test_sqlite(tmp_path):
    """SQLite has no connections to run out of: status 2."""
    result = CliRunner().invoke(doctor, [f"sqlite:///{tmp_path}/shop.db"])
    assert result.exit_code == 2
    assert "no limit of connections" in result.output
