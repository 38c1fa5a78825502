"""`retrymw wait`, as a real process, against servers that start, are full, or are gone for good."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

from retrymw.commands.wait import wait
from retrymw.testing.servers import free_port
from tests.commands.helpers import BOUND, MYSQL, POSTGRESQL, done, started, url_of
from tests.servers.situations.base import wait_until

PYMYSQL = MYSQL[0]
DRIVERS = [*MYSQL, *POSTGRESQL]
NOWHERE = "mysql+pymysql://app:app@127.0.0.1:1/app"


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture
def server(request, driver):
    return request.getfixturevalue("mariadb" if "mysql" in driver else "postgresql")


def ask(url, *arguments, **options):
    return CliRunner().invoke(wait, [url, *arguments], **options)


def waits(process, why):
    """Its first line, which says that it waits."""
    line = process.stderr.readline()
    return re.match(rf"attempt 1, next in \d\.\d s, \d+ s left: {why}: ", line)


def listener():
    """Somebody who takes connections and says nothing."""
    return socket.create_server(("127.0.0.1", free_port()))


class TestAnswers:
    def test_lets_us_in(self, server, driver):
        """A database that is there lets us in at the first attempt, whatever the driver."""
        result = ask(url_of(server, driver))
        assert result.exit_code == 0, result.output
        where = f"{driver}://app@127.0.0.1:{server.port}/app"
        assert result.stderr.startswith(f"{where} let us in after 0.")
        assert result.stderr.endswith("s (1 attempt)\n")
        assert result.stdout == ""

    def test_lets_nobody_in(self, server, driver):
        """A database that is full is waited for; when the time is up the status is 1."""
        with server.fill():
            result = ask(url_of(server, driver), "--timeout", "0.3")
        assert result.exit_code == 1
        assert re.search(r"did not let us in within 0.3 s \(\d+ attempts?\): full: ", result.stderr)

    def test_is_not_there(self, server, driver):
        """Nobody listens: it is waited for."""
        result = ask(url_of(server, driver, port=1), "--timeout", "0.3")
        assert result.exit_code == 1
        assert re.search(r"within 0.3 s \(\d+ attempts?\): not there yet: ", result.stderr)

    def test_name_is_not_known(self, driver):
        """A name that is not known yet, as of a container that is not started, is waited for."""
        result = ask(f"{driver}://app:app@no-such-host.invalid/app", "--timeout", "0.3")
        assert result.exit_code == 1, result.output
        assert re.search(r"within 0.3 s \(\d+ attempts?\): not there yet: ", result.stderr)

    def test_wrong_password(self, server, driver):
        """A wrong password ends the wait at once, with status 2."""
        result = ask(url_of(server, driver, password="wrong"))
        assert result.exit_code == 2
        assert "attempt" not in result.stderr
        assert "Waiting is no cure for that" in result.stderr
        assert 'for user "app"' in result.stderr.replace("'", '"')

    def test_wrong_query(self, server, driver):
        """So does a query that is wrong."""
        result = ask(url_of(server, driver), "--query", "SELECT 1 FROM nope")
        assert result.exit_code == 2
        assert "nope" in result.stderr

    def test_query_with_percent_sign(self, server, driver):
        """The query is sent as it is: neither % nor : is special in it."""
        query = "SELECT 1 WHERE '100%s :a' LIKE '100%'"
        assert ask(url_of(server, driver), "--query", query).exit_code == 0

    def test_mute_server(self, server, driver):
        """A server that takes connections and says nothing holds nobody longer than an attempt."""
        server.pause()
        result = done("wait", url_of(server, driver), "--timeout", "0", "--attempt-timeout", "1")
        assert result.returncode == 1, result.stderr
        assert "not there yet" in result.stderr

    def test_unknown_database(self, postgresql):
        """A database that does not exist is not waited for."""
        result = ask(url_of(postgresql, POSTGRESQL[0], database="nope"))
        assert result.exit_code == 2
        assert 'database "nope" does not exist' in result.stderr

    @pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
    def test_several_hosts(self, postgresql, driver):
        """Of several hosts, the one that answered is quoted, not the one that is not there."""
        hosts = f"host=127.0.0.1:1&host=127.0.0.1:{postgresql.port}"
        with postgresql.fill():
            result = ask(f"{driver}://app:app@/app?{hosts}", "--timeout", "0")
        assert "full: remaining connection slots are reserved" in result.stderr

    def test_sqlite(self, tmp_path):
        """SQLite, as in development, is there at once."""
        for driver in ("sqlite", "sqlite+aiosqlite"):
            assert ask(f"{driver}:///{tmp_path}/shop.db").exit_code == 0

    def test_says_which_code_to_look_up(self, mariadb):
        """A code that `retrymw explain` knows is pointed to."""
        with mariadb.fill():
            result = ask(url_of(mariadb, PYMYSQL), "--timeout", "0")
        assert "retrymw explain 1040 says more." in result.stderr

    def test_quiet(self, mariadb):
        """With --quiet there is nothing to read unless it goes wrong."""
        assert ask(url_of(mariadb, PYMYSQL), "--quiet").output == ""
        result = ask(NOWHERE, "--quiet", "--timeout", "0.2")
        assert result.stderr.startswith("Error: ")
        assert "attempt 1," not in result.stderr

    def test_timeout_zero(self):
        """--timeout 0 tries once."""
        assert "(1 attempt)" in ask(NOWHERE, "--timeout", "0").stderr

    def test_url_from_environment(self, mariadb):
        """DATABASE_URL does, and a command may follow it."""
        url = url_of(mariadb, PYMYSQL)
        assert CliRunner().invoke(wait, env={"DATABASE_URL": url}).exit_code == 0
        environment = os.environ | {"DATABASE_URL": url}
        assert done("wait", "--", "sh", "-c", "exit 7", env=environment).returncode == 7

    @pytest.mark.parametrize("option", ["--timeout", "--attempt-timeout"])
    @pytest.mark.parametrize("seconds", ["inf", "nan"])
    def test_no_number_of_seconds(self, option, seconds):
        """Neither is one: nan would never be over."""
        result = ask(NOWHERE, option, seconds)
        assert result.exit_code == 2
        assert f"{seconds} is not a number of seconds" in result.output

    def test_help(self):
        """The help says what the statuses mean, and how a command is written."""
        told = " ".join(CliRunner().invoke(wait, ["--help"]).output.split())
        assert "[-- COMMAND" in told
        assert "130 Ctrl-C" in told


class TestWaits:
    def test_until_it_is_started(self, server, driver):
        """A server that starts while we wait lets us in."""
        server.stop()
        with started("wait", url_of(server, driver)) as process:
            assert waits(process, "not there yet")
            server.start()
            _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 0, said
        assert "let us in after" in said.splitlines()[-1]

    def test_until_a_connection_is_free(self, server, driver):
        """A limit that others have reached is waited for until one of them leaves."""
        with server.fill(), started("wait", url_of(server, driver)) as process:
            assert waits(process, "full")
            server.kill_connections()
            _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 0, said
        assert "let us in after" in said.splitlines()[-1]

    def test_over_a_cut_query(self, mariadb, mariadb_proxy):
        """A connection that breaks in the query is a reason to wait, as one in the connect is."""
        query = "SELECT 'the only one'"
        ask(url_of(mariadb, PYMYSQL, port=mariadb_proxy.port), "--query", query)
        mariadb_proxy.cut("reset", 1, times=3)
        result = ask(url_of(mariadb, PYMYSQL, port=mariadb_proxy.port), "--query", query)
        assert mariadb_proxy.faults == 3
        assert result.exit_code == 0, result.output
        assert "(4 attempts)" in result.output

    def test_over_a_blocked_query(self, request, server, driver):
        """So is one that is not answered: each attempt is bounded, the query with it."""
        name = "mariadb_proxy" if "mysql" in driver else "postgresql_proxy"
        proxy = request.getfixturevalue(name)
        proxy.cut("blackhole", 1)
        url = url_of(server, driver, port=proxy.port)
        result = done("wait", url, "--attempt-timeout", "3")
        assert result.returncode == 0, result.stderr
        assert "(2 attempts)" in result.stderr

    def test_over_a_lock(self, postgresql):
        """A query that fails for somebody else's lock is asked again."""
        postgresql.execute("CREATE TABLE IF NOT EXISTS waited (n int)")
        postgresql.execute("GRANT ALL ON waited TO app")
        locker = postgresql._connect(admin=True)
        locker.autocommit = False
        locker.execute("LOCK TABLE waited")
        query = "LOCK TABLE waited IN SHARE MODE NOWAIT"
        with started("wait", url_of(postgresql, POSTGRESQL[0]), "--query", query) as process:
            assert waits(process, "busy")
            locker.close()
            _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 0, said

    def test_down_for_good(self):
        """It gives up when the time is up, and not much later."""
        began = time.monotonic()
        result = ask(NOWHERE, "--timeout", "1")
        assert result.exit_code == 1
        assert 1 <= time.monotonic() - began < 10


class TestCommand:
    def test_is_run_in_our_place(self, mariadb):
        """The command takes the place of the process: its number, its output, its exit status."""
        code = "import os; print(os.getpid()); raise SystemExit(7)"
        line = [url_of(mariadb, PYMYSQL), "--", sys.executable, "-c", code]
        with started("wait", *line) as process:
            said, _ = process.communicate(timeout=BOUND)
        assert process.returncode == 7
        assert int(said) == process.pid

    def test_is_given_its_options(self, mariadb):
        """What follows -- is the command's, be it --help or another --."""
        result = done("wait", url_of(mariadb, PYMYSQL), "-q", "--", "echo", "--help", "--", "-q")
        assert result.stdout == "--help -- -q\n"
        assert result.stderr == ""

    def test_gets_its_signals(self, mariadb):
        """A signal that is sent to us ends the command."""
        line = [url_of(mariadb, PYMYSQL), "--", "sh", "-c", "echo here; exec sleep 60"]
        with started("wait", *line) as process:
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(BOUND) == -signal.SIGTERM

    def test_has_the_signals_of_a_fresh_process(self, mariadb):
        """What Python ignores, the command does not: a broken pipe ends it."""
        result = done("wait", url_of(mariadb, PYMYSQL), "--", "grep", "SigIgn", "/proc/self/status")
        ignored = int(result.stdout.split()[1], 16)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            assert ignored & 1 << (number - 1) == 0

    def test_is_not_run_without_a_database(self, tmp_path):
        """No database, no command."""
        trace = tmp_path / "trace"
        result = done("wait", NOWHERE, "--timeout", "0", "--", "touch", str(trace))
        assert result.returncode == 1
        assert not trace.exists()

    @pytest.mark.parametrize(("name", "status"), [("no-such-command", 127), ("/etc/passwd", 126)])
    def test_that_can_not_be_run(self, mariadb, name, status):
        """The statuses are the shell's: 127 if it is not there, 126 if it can't be run."""
        result = done("wait", url_of(mariadb, PYMYSQL), "-q", "--", name)
        assert result.returncode == status
        assert name in result.stderr

    def test_is_missing(self, mariadb):
        """Nothing after -- is a mistake, told before any waiting."""
        result = ask(url_of(mariadb, PYMYSQL), "--")
        assert result.exit_code == 2
        assert "There is no command after --" in result.output

    def test_without_dashes(self, mariadb):
        """A command without -- before it is refused: its options would be taken for ours."""
        result = ask(url_of(mariadb, PYMYSQL), "true")
        assert result.exit_code == 2
        assert "unexpected extra argument" in result.output


class TestStops:
    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
    )
    def test_in_a_wait(self, number, status):
        """G6: Ctrl-C and SIGTERM end it between two attempts, and no traceback is shown."""
        with started("wait", NOWHERE) as process:
            process.stderr.readline()
            process.send_signal(number)
            _, said = process.communicate(timeout=BOUND)
        assert process.returncode == status
        assert "Traceback" not in said

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_in_an_attempt(self, driver, number):
        """G6: and in the middle of one, though the driver, written in C, does not listen."""
        with listener() as mute:
            mute.settimeout(BOUND)
            port = mute.getsockname()[1]
            url = f"{driver}://app:app@127.0.0.1:{port}/app"
            with started("wait", url, "--attempt-timeout", "60") as process:
                connection, _ = mute.accept()
                with connection:
                    process.send_signal(number)
                    _, said = process.communicate(timeout=BOUND)
        assert process.returncode == 128 + number
        assert "Traceback" not in said

    def test_while_a_name_is_looked_up(self, tmp_path):
        """G6: and while a name server takes its time."""
        code = (
            "import socket, time; from retrymw.commands.wait import wait\n"
            "def slow(*_, **__): print('asked', flush=True); time.sleep(60)\n"
            "socket.getaddrinfo = slow\n"
            "wait(['mysql+aiomysql://app:app@db.example/app', '--attempt-timeout', '60'])"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout.readline() == "asked\n"
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=BOUND)
            finally:
                process.kill()
        assert process.returncode == 130


def test_nothing_is_left(mariadb):
    """An attempt that ended leaves no thread and no connection behind."""
    before = threading.enumerate()
    assert ask(url_of(mariadb, PYMYSQL)).exit_code == 0
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(BOUND)
            assert not thread.is_alive()
    wait_until(lambda: mariadb.connection_count() == 0)
