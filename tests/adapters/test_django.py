"""Django's connections under real handlers, on real servers behind the fault proxy."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any

import anyio
import django
import httpx
import psycopg.sql
import pytest
import tenacity
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import (
    DatabaseError,
    Error,
    close_old_connections,
    connections,
    models,
    transaction,
)
from django.db.utils import ConnectionHandler
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path, resolve

import retrymw.asgi
import retrymw.wsgi
from retrymw import RetryPolicy, current_attempt, rollback_safe
from retrymw.adapters.django import Database
from retrymw.testing import FaultProxy
from retrymw.testing.conformance import AccountingConformance, AdapterConformance, Subject
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL
from retrymw.typing import Report

if not settings.configured:  # tests/servers has Django as well
    settings.configure(USE_TZ=True)
    django.setup()

View = Callable[..., Any]
Server = MariaDB | PostgreSQL

ENGINES = {"mysql": "django.db.backends.mysql", "postgresql": "django.db.backends.postgresql"}
CONFLICTS = {
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
    "postgresql": "SELECT app.conflict()",
}
RECOVERED = (200, "recovered")
FINE = (200, None)
MAX_AGE = {"wsgi": 60, "asgi": 0}  # Django's advice: persistent connections are not for ASGI

numbers = itertools.count()
on_both_shells = pytest.mark.parametrize("shell", ["wsgi", "asgi"])
on_mariadb = pytest.mark.parametrize("server_fixture", ["mariadb"], indirect=True)
on_postgresql = pytest.mark.parametrize("server_fixture", ["postgresql"], indirect=True)


class Thing(models.Model):
    """A thing has a name."""

    name = models.CharField(max_length=50, primary_key=True)

    class Meta:
        app_label = "retrymw_tests"
        db_table = "things"


def add_alias(server: Server, proxy: FaultProxy, **changes: Any) -> str:
    """One more of Django's ``DATABASES``."""
    alias = f"things_{next(numbers)}"
    database = {
        "ENGINE": ENGINES[server.protocol],
        "NAME": server.database,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": proxy.host,
        "PORT": str(proxy.port),
        **changes,
    }
    database["OPTIONS"] = {"connect_timeout": 5} | changes.get("OPTIONS", {})
    connections.settings[alias] = ConnectionHandler({"default": {}, alias: database}).settings[
        alias
    ]
    return alias


def remove_alias(alias: str) -> None:
    if alias in connections.settings:
        wrapper = connections[alias]
        wrapper.in_atomic_block = False
        wrapper.close()
        if getattr(wrapper, "pool", None) is not None:
            wrapper.close_pool()
        del connections[alias], connections.settings[alias]


def warm(alias: str) -> None:
    """Have a connection in the pool: to open one may take longer than a request waits for it."""
    pool = connections[alias].pool
    pool.open()
    pool.putconn(pool.getconn(timeout=10))


class Site:
    """A Django site with one view, behind the middleware."""

    def __init__(self, server: Server, proxy: FaultProxy) -> None:
        self.server = server
        self.proxy = proxy
        self.shell = "wsgi"
        self.conflict = CONFLICTS[server.protocol]
        self.configure()

    def configure(self, **changes: Any) -> None:
        """What is in ``DATABASES``; before the first request."""
        self.close()
        self.alias = add_alias(self.server, self.proxy, **changes)
        self.database = Database(self.alias)

    def close(self) -> None:
        remove_alias(getattr(self, "alias", ""))

    # For views.

    @property
    def connection(self) -> Any:
        return connections[self.alias]

    def atomic(self, **options: Any) -> Any:
        return transaction.atomic(using=self.alias, **options)

    def execute(self, sql: Any) -> list[Any]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def add(self, name: str) -> None:
        Thing(name=name).save(using=self.alias, force_insert=True)

    def cut(self, at: Any = 1, how: Any = "reset") -> None:
        """Arm a fault in the first attempt."""
        if current_attempt().number == 1:
            self.proxy.cut(how, at=at)

    # For tests.

    def names(self) -> list[str]:
        """What is stored, as the server itself sees it."""
        return [row[0] for row in self.server.execute("SELECT name FROM app.things ORDER BY name")]

    def send(self, view: View, method: str = "POST", **options: Any) -> httpx.Response:
        urls = (path("", view),)
        options = {
            "policy": RetryPolicy(wait=tenacity.wait_none()),
            "databases": [self.database],
            "find_endpoint": lambda _: resolve("/", urls).func,
        } | options
        with override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"]):
            if self.shell == "wsgi":
                app = retrymw.wsgi.RetryMiddleware(WSGIHandler(), **options)
                with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as http:
                    return http.request(method, "/")
            return anyio.run(
                send_asgi, retrymw.asgi.RetryMiddleware(ASGIHandler(), **options), method
            )

    def outcome(self, view: View, method: str = "POST", **options: Any) -> tuple[int, str | None]:
        response = self.send(view, method, **options)
        return response.status_code, response.headers.get("retry-outcome")


async def send_asgi(app: Any, method: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, "/")


@pytest.fixture(params=["mariadb", "postgresql"])
def server_fixture(request: pytest.FixtureRequest) -> str:
    """Both servers, where a test does not say more."""
    return str(request.param)


@pytest.fixture
def server(server_fixture: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server, with a table for things."""
    server: Server = request.getfixturevalue(server_fixture)
    with things(server):
        yield server


@pytest.fixture
def proxy(server_fixture: str, server: Server, request: pytest.FixtureRequest) -> FaultProxy:
    """The fault proxy before the server."""
    proxy: FaultProxy = request.getfixturevalue(f"{server_fixture}_proxy")
    return proxy


@pytest.fixture
def site(server: Server, proxy: FaultProxy) -> Iterator[Site]:
    """The site under test, on WSGI unless a test says more."""
    site = Site(server, proxy)
    yield site
    site.close()


def ok(*_: Any) -> HttpResponse:
    return HttpResponse("fine")


# Lost statements and commits.


@on_both_shells
@pytest.mark.parametrize("atomic_requests", [True, False])
def test_lost_write_in_a_transaction(site: Site, shell: str, atomic_requests: bool) -> None:
    """G3: a write that is lost in atomic(), or under ATOMIC_REQUESTS, was not committed: it is
    replayed if the view is @rollback_safe."""
    site.shell = shell
    site.configure(ATOMIC_REQUESTS=atomic_requests)

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("a")
            site.cut()
            site.add("b")
        return ok()

    assert site.outcome(view) == RECOVERED
    assert site.names() == ["a", "b"]


@on_both_shells
@pytest.mark.parametrize("atomic_requests", [True, False])
@pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
def test_lost_commit(
    site: Site, shell: str, atomic_requests: bool, at: str, stored: list[str]
) -> None:
    """G4: a COMMIT that is lost at the end of atomic(), or of ATOMIC_REQUESTS, is not repeated."""
    site.shell = shell
    site.configure(ATOMIC_REQUESTS=atomic_requests)

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("a")
            site.cut(at)
        return ok()

    response = site.send(view)
    assert (response.status_code, response.headers["retry-outcome"]) == (503, "unknown")
    assert response.headers["retry-attempts"] == "1"
    assert "retry-after" not in response.headers
    assert site.names() == stored


@on_both_shells
def test_lost_write_without_a_transaction(site: Site, shell: str) -> None:
    """G4: outside of atomic() each write is its own COMMIT."""
    site.shell = shell

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.execute("SELECT 1")
        site.cut()
        site.add("a")
        return ok()

    assert site.outcome(view) == (503, "unknown")
    assert site.names() == ["a"]


def test_failure_after_a_write_without_a_transaction(site: Site) -> None:
    """G4: what comes after a write outside of atomic() is after a commit."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.add("a")
        site.cut()
        site.execute("SELECT 1")
        return ok()

    assert site.outcome(view) == (503, "committed")


@pytest.mark.parametrize("in_atomic", [True, False])
def test_lost_read(site: Site, in_atomic: bool) -> None:
    """G3: a read that is lost is replayed, with a transaction or without."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.execute("SELECT 1")
        if in_atomic:
            with site.atomic():
                site.cut()
                list(Thing.objects.using(site.alias))
        else:
            site.cut()
            list(Thing.objects.using(site.alias))
        return ok()

    assert site.outcome(view) == RECOVERED


def test_commit_of_reads(site: Site) -> None:
    """G3: under ATOMIC_REQUESTS the COMMIT of a view that only reads commits nothing."""
    site.configure(ATOMIC_REQUESTS=True)

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.execute("SELECT 1")
        site.cut("commit")
        return ok()

    assert site.outcome(view) == RECOVERED


def test_lost_savepoint(site: Site) -> None:
    """G3: losing the connection at the end of a nested atomic() commits nothing."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            with site.atomic():
                site.add("a")
                site.cut()
            site.add("b")
        return ok()

    assert site.outcome(view) == RECOVERED
    assert site.names() == ["a", "b"]


def test_lost_in_a_raised_exception(site: Site) -> None:
    """Where Django lets exceptions through, what was lost in a transaction is replayed as well."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("a")
            site.cut()
            site.add("b")
        return ok()

    with override_settings(DEBUG_PROPAGATE_EXCEPTIONS=True):
        assert site.outcome(view) == RECOVERED


@on_mariadb
def test_procedure(site: Site) -> None:
    """G4: a procedure may commit in MariaDB, so what is lost in it is not repeated."""
    site.server.execute(
        "CREATE PROCEDURE app.do_it() BEGIN INSERT INTO app.things VALUES ('a'); END"
    )

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.connection.cursor() as cursor:
            site.cut()
            cursor.callproc("do_it")
        return ok()

    try:
        assert site.outcome(view) == (503, "unknown")
        assert site.names() == ["a"]
    finally:
        site.server.execute("DROP PROCEDURE app.do_it")


@on_postgresql
def test_function(site: Site) -> None:
    """G3: in PostgreSQL what is called in atomic() is part of the transaction."""
    site.server.execute(
        "CREATE FUNCTION app.do_it() RETURNS void AS 'INSERT INTO app.things VALUES (''a'')'"
        " LANGUAGE sql; GRANT ALL ON FUNCTION app.do_it() TO app"
    )

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic(), site.connection.cursor() as cursor:
            site.cut()
            cursor.callproc("do_it")
        return ok()

    assert site.outcome(view) == RECOVERED
    assert site.names() == ["a"]


@on_postgresql
def test_statement_that_psycopg_puts_together(site: Site) -> None:
    """What a statement does is seen in psycopg's ``sql`` objects as well."""
    insert = psycopg.sql.SQL("INSERT INTO {} VALUES ('a')")

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.execute("SELECT 1")
        site.cut()
        site.execute(insert.format(psycopg.sql.Identifier("things")))
        return ok()

    assert site.outcome(view) == (503, "unknown")


@on_postgresql
def test_lost_while_fetching(site: Site) -> None:
    """Rows that are fetched from a cursor of the server are watched as well."""
    site.server.execute("INSERT INTO app.things SELECT generate_series(1, 100)::text")

    def view(request: Any) -> HttpResponse:
        names = Thing.objects.using(site.alias).order_by("name").iterator(chunk_size=10)
        with site.atomic():
            next(names)
            site.cut()
            return HttpResponse(str(len(list(names))))

    response = site.send(view, "GET")
    assert (response.text, response.headers["retry-outcome"]) == ("99", "recovered")


# Doom.


@on_both_shells
def test_failed_connect(site: Site, shell: str) -> None:
    """A connect that fails is known, though Django makes a 500 of it."""
    site.shell = shell
    site.proxy.cut("reset", at="connect")
    assert site.outcome(lambda request: site.execute("SELECT 1") and ok()) == (
        503,
        "not-replayable",
    )
    site.proxy.cut("reset", at="connect")
    assert site.outcome(lambda request: site.execute("SELECT 1") and ok(), "GET") == RECOVERED


def test_swallowed_failure(site: Site) -> None:
    """A failure that the view makes a 500 of is replayed; one that it answers otherwise is not."""

    def view(request: Any, status: int) -> HttpResponse:
        site.execute("SELECT 1")
        site.cut()
        try:
            site.execute("SELECT 1")
        except DatabaseError:
            return HttpResponse("sorry", status=status)
        return ok()

    assert site.outcome(lambda request: view(request, 500), "GET") == RECOVERED
    assert site.outcome(lambda request: view(request, 404), "GET") == (404, None)


def test_half_a_transaction(site: Site) -> None:
    """What follows a conflict in atomic() raises that very exception, and so does the end of it."""
    errors: list[BaseException] = []

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        try:
            with site.atomic():
                site.execute("INSERT INTO things VALUES ('first half')")
                if current_attempt().number == 1:
                    for sql in (site.conflict, "INSERT INTO things VALUES ('second half')"):
                        try:
                            site.execute(sql)
                        except Error as exc:
                            errors.append(exc)
        except Error as exc:
            errors.append(exc)
            return HttpResponse(status=500)
        return ok()

    assert site.outcome(view) == RECOVERED
    assert len(errors) == 3
    assert len({id(error) for error in errors}) == 1
    assert site.names() == ["first half"]


def test_conflict_in_a_nested_block(site: Site) -> None:
    """A conflict is not cured by a savepoint: the whole transaction is rolled back."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("first half")
            with suppress(Error), site.atomic():
                site.execute(site.conflict)
            site.add("second half")
        return ok()

    assert site.outcome(view) == (503, "exhausted")
    assert site.names() == []


def test_violated_constraint(site: Site) -> None:
    """A constraint that is violated is no failure, and savepoints work with it."""

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("a")
            with suppress(Error), site.atomic():
                site.add("a")
            site.add("b")
        return ok()

    assert site.outcome(view) == FINE
    assert site.names() == ["a", "b"]


def test_conflict_without_a_transaction(site: Site) -> None:
    """A statement that was a transaction of its own may be tried again by the view."""

    def view(request: Any) -> HttpResponse:
        with suppress(Error):
            site.execute(site.conflict)
        site.add("a")
        return ok()

    assert site.outcome(view) == FINE
    assert site.names() == ["a"]


def test_conflict_after_begin(site: Site) -> None:
    """In a transaction that was begun with SQL it may not: half of it would be committed."""

    def view(request: Any) -> HttpResponse:
        site.execute("BEGIN")
        site.execute("INSERT INTO things VALUES ('first half')")
        with suppress(Error):
            site.execute(site.conflict)
        site.execute("INSERT INTO things VALUES ('second half')")
        return ok()

    assert site.outcome(view) == (503, "not-replayable")
    assert site.names() == []


def test_execute_wrapper_of_the_app(site: Site) -> None:
    """What an app's execute wrapper raises itself is not taken for a statement's."""
    site.configure(CONN_MAX_AGE=60)

    def block(*args: Any) -> None:
        raise LookupError("not here")

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with suppress(LookupError), site.connection.execute_wrapper(block):
            site.add("a")
        site.cut()
        site.execute("SELECT 1")
        return ok()

    assert site.outcome(view) == RECOVERED


# on_commit.


@on_both_shells
def test_on_commit(site: Site, shell: str) -> None:
    """What is to be done on commit is done once, in the attempt that committed."""
    site.shell = shell
    done: list[int] = []

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        number = current_attempt().number
        with site.atomic():
            site.add("a")
            transaction.on_commit(lambda: done.append(number), using=site.alias)
            site.cut()
            site.execute("SELECT 1")
        return ok()

    assert site.outcome(view) == RECOVERED
    assert done == [2]


def test_failure_on_commit(site: Site) -> None:
    """G4: what fails in an on_commit function fails after the commit."""

    def lose() -> None:
        site.cut()
        site.execute("SELECT 1")

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add("a")
            transaction.on_commit(lose, using=site.alias)
        return ok()

    assert site.outcome(view) == (503, "committed")
    assert site.names() == ["a"]


# What becomes of connections.


@on_both_shells
@pytest.mark.parametrize("atomic_requests", [True, False])
def test_closed_before_the_wait(site: Site, shell: str, atomic_requests: bool) -> None:
    """G8: a connection that is healthy after a conflict is closed before the request waits."""
    site.shell = shell
    site.configure(CONN_MAX_AGE=MAX_AGE[shell], ATOMIC_REQUESTS=atomic_requests)
    seen = []

    def view(request: Any) -> HttpResponse:
        if current_attempt().number == 1:
            site.execute(site.conflict)
        return ok()

    def note(report: Report) -> None:
        if report.outcome is None:
            site.proxy.wait_for_connections(0)
            seen.append(site.proxy.connections)

    assert site.outcome(view, "GET", hooks=[note]) == RECOVERED
    assert seen == [0]


def test_persistent_connection(site: Site) -> None:
    """G5: with CONN_MAX_AGE a connection outlives successful requests, and a failed one's is
    replaced by one that is in no transaction."""
    site.configure(CONN_MAX_AGE=60)

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.add(f"{next(numbers)}")
        return ok()

    @rollback_safe
    def failing(request: Any) -> HttpResponse:
        with site.atomic():
            site.cut()
            site.execute("SELECT 1")
        return ok()

    assert [site.outcome(view) for _ in range(3)] == [FINE] * 3
    assert site.proxy.accepted == 1
    assert site.outcome(failing) == RECOVERED
    wrapper = site.connection
    assert wrapper.get_autocommit()
    assert not wrapper.in_atomic_block
    opened = site.proxy.accepted  # by a ping as well
    assert site.outcome(view) == FINE
    assert site.proxy.accepted == opened


def test_no_connection_is_opened_to_end_a_transaction(site: Site) -> None:
    """G9: when a connection is lost in atomic(), leaving the block does not open another one."""

    def view(request: Any) -> HttpResponse:
        with site.atomic():
            site.execute("SELECT 1")
            site.cut()
            site.execute("SELECT 1")
        return ok()

    assert site.outcome(view) == (503, "not-replayable")
    assert site.proxy.accepted == 1


@on_both_shells
@pytest.mark.parametrize("how", ["autocommit off", "atomic() that is not left"])
def test_transaction_that_is_left_open(site: Site, shell: str, how: str) -> None:
    """G1: what a view leaves uncommitted is rolled back, and the next one starts anew."""
    site.shell = shell
    site.configure(CONN_MAX_AGE=MAX_AGE[shell])

    def view(request: Any) -> HttpResponse:
        if how == "autocommit off":
            transaction.set_autocommit(False, using=site.alias)
        else:
            site.atomic().__enter__()
        site.add("a")
        return ok()

    def check(request: Any) -> HttpResponse:
        wrapper = site.connection
        assert wrapper.get_autocommit()
        left = (wrapper.in_atomic_block, wrapper.savepoint_ids, wrapper.run_on_commit)
        assert left == (False, [], [])
        return ok()

    assert site.outcome(view) == FINE
    site.proxy.wait_for_connections(0)
    assert site.outcome(check) == FINE
    assert site.names() == []


def test_autocommit_off_in_the_settings(site: Site) -> None:
    """G1: where Django never commits by itself, what a view did not commit is rolled back."""
    site.configure(CONN_MAX_AGE=60, AUTOCOMMIT=False)

    def view(request: Any, commits: bool) -> HttpResponse:
        site.add("forgotten" if not commits else "stored")
        if commits:
            transaction.commit(site.alias)
        return ok()

    assert site.outcome(lambda request: view(request, False)) == FINE
    assert site.outcome(lambda request: view(request, True)) == FINE
    assert site.names() == ["stored"]


def test_within_a_test_case(site: Site) -> None:
    """In the atomic() block of a Django TestCase requests leave its transaction alone."""
    wrapper = site.connection
    request_started.disconnect(close_old_connections)  # as Django's test client does
    request_finished.disconnect(close_old_connections)
    with suppress(LookupError), site.atomic():
        site.add("of the test")

        @rollback_safe
        def view(request: Any) -> HttpResponse:
            with site.atomic():
                site.add("of the view")
            return ok()

        assert site.outcome(view) == FINE
        assert wrapper.in_atomic_block
        assert [thing.name for thing in Thing.objects.using(site.alias).order_by("name")] == [
            "of the test",
            "of the view",
        ]
        request_started.connect(close_old_connections)
        request_finished.connect(close_old_connections)
        raise LookupError("undo it")
    assert site.names() == []


def test_connection_of_another_thread(site: Site) -> None:
    """G1, G8: a thread that is in the middle of a statement when its attempt has failed is cut
    off, and what it used is closed."""
    site.shell = "asgi"
    threads: list[threading.Thread] = []
    errors: list[BaseException] = []
    slow = {"mysql": "SELECT SLEEP(30)", "postgresql": "SELECT pg_sleep(30)"}

    def work() -> None:
        wrapper = site.connection
        try:
            with site.atomic():
                site.add("a")
                site.execute(slow[site.server.protocol])
        except Error as exc:  # it was cut
            errors.append(exc)
        assert wrapper.connection is None

    @rollback_safe
    async def view(request: Any) -> HttpResponse:
        if current_attempt().number == 1:
            context = copy_context()
            threads.append(threading.Thread(target=lambda: context.run(work)))
            threads[0].start()
            await sync_to_async(site.server.wait_for_sleep, thread_sensitive=False)()
            await sync_to_async(site.execute)(site.conflict)
        return ok()

    assert site.outcome(view) == RECOVERED
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert len(errors) == 1
    site.proxy.wait_for_connections(0)
    assert site.names() == []


@on_postgresql
def test_pool(site: Site) -> None:
    """Django's pool has its connections back before the wait, and lost ones leave it."""
    pool = {"min_size": 0, "max_size": 2, "timeout": 5}
    site.configure(OPTIONS={"pool": pool}, ATOMIC_REQUESTS=True)
    seen = []

    @rollback_safe
    def view(request: Any) -> HttpResponse:
        site.add("a")
        site.cut()
        site.execute("SELECT 1")
        return ok()

    def note(report: Report) -> None:
        seen.append(site.connection.connection)

    assert site.outcome(view, hooks=[note]) == RECOVERED
    assert seen == [None, None]
    assert site.names() == ["a"]


@on_postgresql
def test_dry_pool(site: Site) -> None:
    """A pool without a connection left is a shortage, that a replay waits out."""
    site.configure(OPTIONS={"pool": {"min_size": 0, "max_size": 1, "timeout": 0.2}})
    warm(site.alias)
    held = site.connection.copy()
    held.ensure_connection()

    def note(report: Report) -> None:
        held.close()

    response = site.send(lambda request: site.execute("SELECT 1") and ok(), "GET", hooks=[note])
    assert response.headers["retry-reason"] == "too-many-connections"
    assert response.headers["retry-outcome"] == "recovered"


# Outside of requests, and configuration.


def test_outside_of_requests(site: Site) -> None:
    """In a script Django's connections do what they always do."""
    with site.atomic():
        site.add("a")
    site.proxy.cut("reset", at=1)
    with pytest.raises(Error):
        site.execute("SELECT 1")
    with pytest.raises(Error):
        site.execute("SELECT 1")
    site.connection.close()
    assert site.execute("SELECT name FROM things") in ([("a",)], [["a"]])


def test_connection_that_is_there_already(site: Site) -> None:
    """A connection that was opened before the database was made is watched as well."""
    alias = add_alias(site.server, site.proxy, CONN_MAX_AGE=60)
    try:
        connections[alias].ensure_connection()
        site.alias, known, site.database = alias, site.alias, Database(alias)

        @rollback_safe
        def view(request: Any) -> HttpResponse:
            with site.atomic():
                site.cut()
                site.add("a")
            return ok()

        assert site.outcome(view) == RECOVERED
        remove_alias(known)
    finally:
        remove_alias(alias)


@on_mariadb
def test_one_for_each_alias(site: Site) -> None:
    """Asking for a database again gives the same; one that is not there is refused by name."""
    assert Database(site.alias) is site.database
    assert repr(site.database) == f"Database('{site.alias}')"
    for alias in ("nowhere", "default"):  # which has no ENGINE here
        with pytest.raises(ValueError, match=rf"'{alias}'; allowed: .*'{site.alias}'"):
            Database(alias)


PYMYSQL = """
import pymysql

pymysql.version_info = (2, 2, 8, "final", 0)  # Django asks for a mysqlclient that is as new
pymysql.install_as_MySQLdb()

import sys

import django
import httpx
import tenacity
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, transaction
from django.http import HttpResponse
from django.urls import path, resolve
from retrymw import RetryPolicy, current_attempt, rollback_safe
from retrymw.adapters.django import Database
from retrymw.testing import FaultProxy
from retrymw.wsgi import RetryMiddleware

host, port, user, password, name, at = sys.argv[1:]
proxy = FaultProxy((host, int(port)), "mysql")
proxy.start()


@rollback_safe
def view(request):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO things VALUES ('a')")
        if current_attempt().number == 1:
            proxy.cut("reset", at=at if at == "commit" else int(at))
        cursor.execute("INSERT INTO things VALUES ('b')")
    return HttpResponse("")


settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=(path("", view),),
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.mysql",
            "NAME": name,
            "USER": user,
            "PASSWORD": password,
            "HOST": proxy.host,
            "PORT": proxy.port,
        }
    },
)
django.setup()
app = RetryMiddleware(
    WSGIHandler(),
    policy=RetryPolicy(wait=tenacity.wait_none()),
    databases=[Database()],
    find_endpoint=lambda environ: resolve("/").func,
)
with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://x") as client:
    response = client.post("/")
print(response.status_code, response.headers["retry-outcome"])
"""


@on_mariadb
@pytest.mark.parametrize(("at", "expected"), [("1", "200 recovered"), ("commit", "503 unknown")])
def test_pymysql(site: Site, at: str, expected: str) -> None:
    """With PyMySQL in the place of mysqlclient it is the same."""
    server = site.server
    where = [server.host, server.port, server.user, server.password, server.database, at]
    done = subprocess.run(
        [sys.executable, "-c", PYMYSQL, *map(str, where)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr
    assert site.names() == ["a", "b"]


# The conformance suite.


class Threads:
    """A thread for each attempt, as Django's ASGI handler has it, and outside of them the caller's.

    Statements are in a transaction, since autocommit is off.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._threads: dict[Any, ThreadPoolExecutor] = {}
        self._used: set[Any] = set()
        self._lock = threading.Lock()

    def execute(self, sql: str) -> list[Any]:
        return list(self._run(self._execute, sql))

    def commit(self) -> None:
        self._run(transaction.commit, self._alias)

    def rollback(self) -> None:
        self._run(transaction.rollback, self._alias)

    def close(self) -> None:
        for thread in self._threads.values():
            thread.submit(connections[self._alias].close)
            thread.shutdown()

    def in_use(self) -> int:
        return sum(wrapper.connection is not None for wrapper in self._used)

    def _execute(self, sql: str) -> list[Any]:
        connection = connections[self._alias]
        self._used.add(connection)
        if connection.connection is None or connection.get_autocommit():
            connection.set_autocommit(False)
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        attempt = current_attempt(None)
        if attempt is None:
            return function(*args)
        with self._lock:
            for over in [each for each in self._threads if each.over]:
                self._threads.pop(over).shutdown(wait=False)
            thread = self._threads.setdefault(attempt, ThreadPoolExecutor(1))
        return thread.submit(copy_context().run, function, *args).result()


class Django:
    """Django as it comes: a connection for each thread."""

    @pytest.fixture
    def options(self, size: int) -> dict[str, Any]:
        """For the driver."""
        return {}

    @pytest.fixture
    def subject(
        self, server: Server, proxy: FaultProxy, options: dict[str, Any]
    ) -> Iterator[Subject]:
        alias = add_alias(server, proxy, OPTIONS=options)
        threads = Threads(alias)
        yield Subject(
            database=Database(alias),
            execute=threads.execute,
            commit=threads.commit,
            rollback=threads.rollback,
            in_use=threads.in_use if options else None,
        )
        threads.close()
        remove_alias(alias)


class OnMariaDB(Django):
    """mysqlclient."""

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb


class OnPostgreSQL(Django):
    """psycopg."""

    @pytest.fixture
    def server(self, postgresql: PostgreSQL) -> PostgreSQL:
        return postgresql


class WithPool(OnPostgreSQL):
    """Django's pool for psycopg."""

    @pytest.fixture
    def options(self, size: int) -> dict[str, Any]:
        return {"pool": {"min_size": 0, "max_size": size, "timeout": 0.6}}


class TestConformanceOnMariaDB(OnMariaDB, AdapterConformance):
    """What every adapter must do."""


class TestConformanceOnPostgreSQL(OnPostgreSQL, AdapterConformance):
    """What every adapter must do."""


class TestConformanceOfThePool(WithPool, AdapterConformance):
    """What every adapter must do."""


class TestAccountingOnMariaDB(OnMariaDB, AccountingConformance):
    """Every order is accounted for."""


class TestAccountingOfThePool(WithPool, AccountingConformance):
    """Every order is accounted for."""

    @pytest.fixture
    def options(self, size: int) -> dict[str, Any]:
        # By default the pool waits a second after a connect that failed, then 2, then 4 …
        return {"pool": {"max_size": size, "min_size": 0, "timeout": 0.6, "reconnect_timeout": 0.1}}
