"""What the conformance suite plays on: one endpoint behind a shell, over the adapter under test."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import anyio
import anyio.to_thread
import httpx
import pytest
import tenacity
from anyio.from_thread import BlockingPortal, start_blocking_portal

import retrymw.asgi
import retrymw.wsgi
from retrymw import RetryPolicy, current_attempt
from retrymw.testing.proxy import FaultProxy
from retrymw.testing.servers import MariaDB, PostgreSQL

__all__ = [
    "RECOVERED",
    "Conformance",
    "Endpoint",
    "Shell",
    "Stage",
    "Subject",
    "in_context",
    "is_first",
    "things",
    "told",
    "under",
]

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")
Shell = Literal["asgi", "wsgi"]
Endpoint = Callable[[], Coroutine[Any, Any, object]]

_DIALECTS: Final = {
    "mysql": {
        "identity": "SELECT CONNECTION_ID()",
        "conflict": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213",
        "sleep": "SELECT SLEEP({})",
    },
    "postgresql": {
        "identity": "SELECT pg_backend_pid()",
        "conflict": "SELECT app.conflict()",
        "sleep": "SELECT pg_sleep({})",
    },
}
_CONFLICT: Final = """
CREATE FUNCTION app.conflict() RETURNS void AS
$$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$ LANGUAGE plpgsql
"""

_SHELLS: Final = "retrymw_shells"
RECOVERED: Final = (200, "2", "recovered")


@dataclass
class Subject:
    """An adapter under test, and how an app uses it in an attempt.

    Make it with room for ``size`` connections (a fixture of the suite, 2 mostly), and let it wait
    for one of them for 0.2 seconds at most.

    Attributes:
        database: the adapter.
        execute: runs a statement on the attempt's connection, in a transaction, and returns the
            rows, if there are any. A coroutine function if the adapter is async.
        commit: commits the attempt's transaction.
        rollback: rolls it back.
        in_use: how many connections are given out by the pool; None if there is no pool.
        unit: the same with ``commit="on-success"``, if there is such a thing.
    """

    database: Any
    execute: Callable[[str], Any]
    commit: Callable[[], Any]
    rollback: Callable[[], Any]
    in_use: Callable[[], int] | None = None
    unit: Subject | None = None

    @property
    def is_async(self) -> bool:
        """Whether its calls are coroutines."""
        return inspect.iscoroutinefunction(self.execute)


class Stage:
    """Endpoints behind the middleware, in the shell of a test.

    Endpoints are coroutine functions without arguments, for both shells. They return what the
    response is to be, a body or a status. Under WSGI they are run without an event loop, so what
    they await must be this object's.
    """

    def __init__(
        self,
        subject: Subject,
        shell: Shell,
        server: MariaDB | PostgreSQL,
        proxy: FaultProxy,
        portal: BlockingPortal,
    ) -> None:
        self.subject = subject
        self.shell = shell
        self.server = server
        self.proxy = proxy
        self.portal = portal
        dialect = _DIALECTS[server.protocol]
        self.identity, self.conflict = dialect["identity"], dialect["conflict"]
        self._sleep = dialect["sleep"]

    # For endpoints.

    async def execute(self, sql: str) -> Any:
        """Run a statement on the attempt's connection."""
        return await self.call(self.subject.execute, sql)

    async def add(self, name: str) -> None:
        """Write a row."""
        await self.execute(f"INSERT INTO things VALUES ('{name}')")  # names of tests

    async def commit(self) -> None:
        """Commit the attempt's transaction."""
        await self.call(self.subject.commit)

    async def rollback(self) -> None:
        """Roll the attempt's transaction back."""
        await self.call(self.subject.rollback)

    async def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Call the adapter's code: where it would block the event loop, in a worker thread."""
        if self.subject.is_async:
            return await function(*args)
        if self.shell == "asgi":
            return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
        return function(*args)

    def sleep(self, seconds: float) -> str:
        """A statement that takes so long."""
        return self._sleep.format(seconds)

    # For tests.

    @property
    def in_use(self) -> int:
        """How many connections are held."""
        in_use = self.subject.in_use
        return self.proxy.connections if in_use is None else in_use()

    def wait_until_free(self) -> None:
        """Wait until no connection is held; without a pool, closing one takes its time."""
        if self.subject.in_use is None:
            self.proxy.wait_for_connections(0)
        assert self.in_use == 0

    def names(self) -> list[str]:
        """What is stored, as the server itself sees it."""
        return [row[0] for row in self.server.execute("SELECT name FROM app.things ORDER BY name")]

    def request(self, endpoint: Endpoint, method: str = "GET", **options: Any) -> httpx.Response:
        """One request; ``options`` are the middleware's."""
        if self.shell == "wsgi":
            return self._wsgi(endpoint, method, options)
        response: httpx.Response = self.portal.call(self.asgi, endpoint, method, options)
        return response

    def requests(self, endpoints: list[Endpoint], **options: Any) -> list[httpx.Response]:
        """Several POSTs at once."""
        with ThreadPoolExecutor(len(endpoints)) as threads:
            return list(threads.map(lambda each: self.request(each, "POST", **options), endpoints))

    async def asgi(
        self, endpoint: Endpoint, method: str, options: dict[str, Any]
    ) -> httpx.Response:
        """One request under ASGI."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["endpoint"] = endpoint
            status, body = _response(await endpoint())
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

        seen = options.pop("seen", None)
        middleware = retrymw.asgi.RetryMiddleware(app, **self._options(options))

        async def server(scope: Any, receive: Any, send: Any) -> None:
            async def told(message: Any) -> None:
                if seen is not None and message["type"] == "http.response.start":
                    seen()
                await send(message)

            await middleware(scope, receive, told)

        transport = httpx.ASGITransport(server)
        async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
            return await client.request(method, "/")

    def _wsgi(self, endpoint: Endpoint, method: str, options: dict[str, Any]) -> httpx.Response:
        def app(environ: Any, start_response: Any) -> list[bytes]:
            status, body = _response(run(endpoint()))
            start_response(f"{status} ", [])
            return [body]

        seen = options.pop("seen", None)
        middleware = retrymw.wsgi.RetryMiddleware(
            app, find_endpoint=lambda environ: endpoint, **self._options(options)
        )

        def server(environ: Any, start_response: Any) -> Any:
            def told(*args: Any) -> Any:
                if seen is not None:
                    seen()
                return start_response(*args)

            return middleware(environ, told)

        with httpx.Client(transport=httpx.WSGITransport(server), base_url="http://things") as http:
            return http.request(method, "/")

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        policy = RetryPolicy(wait=tenacity.wait_fixed(0.02))
        return {"policy": policy, "databases": [self.subject.database], **options}


def under(*shells: Shell) -> Callable[[F], F]:
    """Run a test of the suite under these shells only."""

    def mark(test: F) -> F:
        setattr(test, _SHELLS, shells)
        return test

    return mark


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # StopIteration has no type parameter
    coroutine.close()
    raise AssertionError("this endpoint can't be run under WSGI: it waits")


def in_context(function: Callable[[], T]) -> Callable[[], T]:
    """The function in a copy of the caller's context, for a thread."""
    context = contextvars.copy_context()
    return lambda: context.run(function)


def is_first() -> bool:
    """Whether the attempt is the first one."""
    return current_attempt().number == 1


def told(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """The status and what the headers say happened."""
    headers = response.headers
    return response.status_code, headers.get("retry-attempts"), headers.get("retry-outcome")


def _response(result: object) -> tuple[int, bytes]:
    if isinstance(result, int):
        return result, b""
    return 200, str(result or "").encode()


class Conformance:
    """The fixtures of the suite. A subclass has fixtures ``server`` and ``subject`` of its own.

    Attributes:
        shells: what the tests are run under; ``("asgi",)`` for adapters that are async.
    """

    shells: tuple[Shell, ...] = ("asgi", "wsgi")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run every test under each shell."""
        if "shell" in metafunc.fixturenames:
            wanted = getattr(metafunc.function, _SHELLS, self.shells)
            metafunc.parametrize("shell", [shell for shell in self.shells if shell in wanted])

    @pytest.fixture
    def proxy(self, server: MariaDB | PostgreSQL) -> Iterator[FaultProxy]:
        """A fault proxy before the server: what the adapter is to connect to."""
        with FaultProxy((server.host, server.port), server.protocol) as proxy:
            yield proxy

    @pytest.fixture
    def size(self) -> int:
        """How many connections the subject is to have room for."""
        return 2

    @pytest.fixture
    def portal(self) -> Iterator[BlockingPortal]:
        """The event loop of the test: ``portal.call(function, *args)`` for what needs one."""
        with start_blocking_portal() as portal:
            yield portal

    @pytest.fixture
    def stage(
        self,
        server: MariaDB | PostgreSQL,
        proxy: FaultProxy,
        portal: BlockingPortal,
        subject: Subject,
        shell: Shell,
    ) -> Iterator[Stage]:
        """What the tests play on; a table of things is there."""
        with things(server):
            yield Stage(subject, shell, server, proxy, portal)


@contextmanager
def things(server: MariaDB | PostgreSQL) -> Iterator[None]:
    """A table of things that the app owns; and in PostgreSQL a function that ends in a conflict."""
    postgresql = isinstance(server, PostgreSQL)
    if postgresql:
        server.execute("CREATE SCHEMA app AUTHORIZATION app")
        server.execute(_CONFLICT)
        server.execute("GRANT ALL ON FUNCTION app.conflict() TO app")
    server.execute("CREATE TABLE app.things (name VARCHAR(50) PRIMARY KEY)")
    if postgresql:
        server.execute("ALTER TABLE app.things OWNER TO app")
    try:
        yield
    finally:
        server.start()
        server.kill_connections()
        server.execute("DROP SCHEMA app CASCADE" if postgresql else "DROP TABLE app.things")
