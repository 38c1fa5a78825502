"""The shells and the backends that every test in this folder is run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import flask
import httpx
import MySQLdb
import psycopg
import psycopg2
import pymysql
import pytest
import sqlalchemy
import tenacity
from fastapi import APIRouter, FastAPI, Response
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import retrymw.adapters.pymysql
import retrymw.adapters.sqlalchemy
import retrymw.asgi
import retrymw.wsgi
from retrymw import RetryPolicy, current_attempt, idempotent, never_replay, rollback_safe
from retrymw.integrations.flask import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL

SECONDS = 5  # how long a driver may wait for an answer
ERRORS = (
    pymysql.Error,
    MySQLdb.Error,
    psycopg.Error,
    psycopg2.Error,
    sqlalchemy.exc.SQLAlchemyError,
)


@dataclass
class Backend:
    """A server behind a fault proxy, and a way to connect to it."""

    server: MariaDB | PostgreSQL
    proxy: FaultProxy
    connection: Callable[[], AbstractContextManager[Any]]
    # psycopg2 does not tell a statement from a COMMIT. mysqlclient does, but a connection of it
    # that is lost can't be asked whether it was under autocommit, where a statement is one.
    tells_phase: bool = True
    databases: tuple[Any, ...] = ()

    @property
    def after_a_cut(self) -> tuple[tuple[int, str, str], list[str]]:
        """What becomes of a @rollback_safe write that is cut before its COMMIT: reply and rows."""
        if self.tells_phase:
            return (200, "2", "recovered"), ["a"]
        return (503, "1", "unknown"), []

    def names(self) -> list[str]:
        """What is stored, as the server itself sees it."""
        return [row[0] for row in self.server.execute("SELECT name FROM app.things ORDER BY name")]


@dataclass
class Script:
    """What goes wrong: an action for a moment of an attempt, and what the app went through."""

    actions: dict[tuple[int, str], Callable[[], object]] = field(default_factory=dict)
    attempts: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def at(self, attempt: int, moment: str, action: Callable[[], object]) -> None:
        self.actions[attempt, moment] = action

    def reached(self, moment: str) -> None:
        action = self.actions.pop((current_attempt().number, moment), None)
        if action is not None:
            action()


def _adapter(server: MariaDB, proxy: FaultProxy) -> Backend:
    database = retrymw.adapters.pymysql.Database(
        **server.connect_args(host=proxy.host, port=proxy.port),
        read_timeout=SECONDS,
        ssl_disabled=True,
    )
    return Backend(server, proxy, database.connection, databases=(database,))


def _plain(
    connect: Callable[..., Any],
    *,
    tells_phase: bool = True,
    **options: Any,
) -> Callable[..., Backend]:
    def backend(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> Backend:
        arguments = server.connect_args(host=proxy.host, port=proxy.port) | options
        return Backend(server, proxy, lambda: closing(connect(**arguments)), tells_phase)

    return backend


class _Session:
    """A SQLAlchemy session that is used like a PEP 249 connection, and like its cursor."""

    def __init__(self, session: sqlalchemy.orm.Session) -> None:
        self._session = session
        self.commit = session.commit

    def cursor(self) -> _Session:
        return self

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> None:
        text = sqlalchemy.text(statement.replace("%s", ":value"))
        values = {"value": parameters[0]} if parameters else {}
        self.fetchone = self._session.execute(text, values).fetchone


def _sqlalchemy(dialect: str, **options: Any) -> Callable[..., Backend]:
    def backend(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> Backend:
        arguments = server.connect_args(host=proxy.host, port=proxy.port) | options
        engine = sqlalchemy.create_engine(
            f"{dialect}://", connect_args=arguments, poolclass=sqlalchemy.NullPool
        )
        database = retrymw.adapters.sqlalchemy.Database(engine)

        @contextmanager
        def connection() -> Iterator[_Session]:
            with database.session() as session:
                session.connection()
                yield _Session(session)

        return Backend(server, proxy, connection, databases=(database,))

    return backend


BACKENDS: dict[str, tuple[str, Callable[..., Backend]]] = {
    "pymysql-adapter": ("mariadb", _adapter),
    "pymysql": ("mariadb", _plain(pymysql.connect, read_timeout=SECONDS, ssl_disabled=True)),
    "mysqlclient": (
        "mariadb",
        _plain(MySQLdb.connect, tells_phase=False, read_timeout=SECONDS),
    ),
    "psycopg": ("postgresql", _plain(psycopg.connect)),
    "psycopg2": ("postgresql", _plain(psycopg2.connect, tells_phase=False)),
    "sqlalchemy-pymysql": (
        "mariadb",
        _sqlalchemy("mysql+pymysql", read_timeout=SECONDS, ssl_disabled=True),
    ),
    "sqlalchemy-mysqlclient": ("mariadb", _sqlalchemy("mysql+mysqldb", read_timeout=SECONDS)),
    "sqlalchemy-psycopg": ("postgresql", _sqlalchemy("postgresql+psycopg")),
    "sqlalchemy-psycopg2": ("postgresql", _sqlalchemy("postgresql+psycopg2")),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name, make = BACKENDS[request.param]
    server = request.getfixturevalue(name)
    with things(server):
        yield make(server, request.getfixturevalue(f"{name}_proxy"))


@pytest.fixture
def script() -> Script:
    return Script()


class Endpoints:
    """The same few endpoints for every shell."""

    def __init__(self, backend: Backend, script: Script) -> None:
        self.backend = backend
        self.script = script

    def count(self, name: str = "") -> str:
        """Read."""
        self.script.attempts.append(current_attempt().number)
        with self.backend.connection() as connection:
            self.script.reached("connected")
            cursor = connection.cursor()
            cursor.execute("SELECT COUNT(*) FROM app.things")
            return str(cursor.fetchone()[0])

    def add(self, name: str) -> str:
        """Write, in one transaction."""
        self.script.attempts.append(current_attempt().number)
        with self.backend.connection() as connection:
            self.script.reached("connected")
            connection.cursor().execute("INSERT INTO app.things VALUES (%s)", (name,))
            self.script.reached("executed")
            connection.commit()
            self.script.reached("committed")
            connection.cursor().execute("SELECT 1")
        return f"added {name}"

    def put(self, name: str) -> str:
        """Write so that repeating it changes nothing more."""
        self.script.attempts.append(current_attempt().number)
        with self.backend.connection() as connection:
            cursor = connection.cursor()
            cursor.execute("DELETE FROM app.things WHERE name = %s", (name,))
            cursor.execute("INSERT INTO app.things VALUES (%s)", (name,))
            self.script.reached("executed")
            connection.commit()
        return f"put {name}"

    def stubborn(self, name: str) -> str:
        """Swallow the first failure and go on in the same transaction."""
        self.script.attempts.append(current_attempt().number)
        with self.backend.connection() as connection:
            self.script.reached("connected")
            for _ in range(2):
                try:
                    connection.cursor().execute("INSERT INTO app.things VALUES (%s)", (name,))
                    break
                except ERRORS as error:
                    self.script.errors.append(error)
            else:
                raise self.script.errors[-1]
            connection.commit()
        return f"added {name}"

    @property
    def routes(self) -> dict[tuple[str, str], Callable[[str], str]]:
        """By method and first part of the path."""
        return {
            ("GET", "count"): self.count,
            ("POST", "unmarked"): self.add,
            ("PUT", "unmarked"): self.put,
            ("POST", "rollback_safe"): _marked(rollback_safe, self.add),
            ("POST", "idempotent"): _marked(idempotent, self.put),
            ("POST", "never_replay"): _marked(never_replay, self.put),
            ("POST", "stubborn"): _marked(rollback_safe, self.stubborn),
        }


def _marked(mark: Callable[..., Any], method: Callable[[str], str]) -> Callable[[str], str]:
    def endpoint(name: str) -> str:
        return method(name)

    marked: Callable[[str], str] = mark(endpoint)
    return marked


def _with_mark_of(original: Callable[..., Any], endpoint: Callable[..., Any]) -> Callable[..., Any]:
    endpoint.__dict__.update(original.__dict__)
    return endpoint


def _starlette(endpoints: Endpoints, **options: Any) -> httpx.AsyncBaseTransport:
    def route(method: str, path: str, function: Callable[[str], str]) -> Route:
        def endpoint(request: Request) -> PlainTextResponse:
            return PlainTextResponse(function(request.path_params["name"]))

        endpoint = _with_mark_of(function, endpoint)
        return Route(f"/{path}/{{name}}", endpoint, methods=[method])

    app = Starlette(routes=[route(*key, function) for key, function in endpoints.routes.items()])
    app.add_middleware(retrymw.asgi.RetryMiddleware, **options)
    return httpx.ASGITransport(app)


def _fastapi(endpoints: Endpoints, **options: Any) -> httpx.AsyncBaseTransport:
    router = APIRouter()
    for (method, path), function in endpoints.routes.items():

        def endpoint(name: str, function: Any = function) -> Response:
            return PlainTextResponse(function(name))

        bound = _with_mark_of(function, _without_default(endpoint, function))
        router.add_api_route(f"/{path}/{{name}}", bound, methods=[method])
    app = FastAPI()
    app.include_router(router)
    return httpx.ASGITransport(retrymw.asgi.RetryMiddleware(app, **options))


def _without_default(endpoint: Callable[..., Any], function: Any) -> Callable[..., Any]:
    def bound(name: str) -> Response:
        return endpoint(name, function)

    return bound


def _flask(endpoints: Endpoints, **options: Any) -> httpx.BaseTransport:
    app = flask.Flask("things")
    for (method, path), function in endpoints.routes.items():
        app.add_url_rule(f"/{path}/<name>", f"{method} {path}", function, methods=[method])
    Retry(app, **options)
    return httpx.WSGITransport(app)


def _wsgi(endpoints: Endpoints, **options: Any) -> httpx.BaseTransport:
    routes = endpoints.routes

    def find(environ: dict[str, Any]) -> tuple[Callable[[str], str], str]:
        _, path, name = environ["PATH_INFO"].split("/")
        return routes[environ["REQUEST_METHOD"], path], name

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        function, name = find(environ)
        body = function(name).encode()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    return httpx.WSGITransport(
        retrymw.wsgi.RetryMiddleware(app, find_endpoint=lambda environ: find(environ)[0], **options)
    )


SHELLS: dict[str, Callable[..., Any]] = {
    "starlette": _starlette,
    "fastapi": _fastapi,
    "flask": _flask,
    "wsgi": _wsgi,
}

Client = Callable[..., httpx.Response]


@pytest.fixture(params=SHELLS)
def client(request: pytest.FixtureRequest, backend: Backend, script: Script) -> Client:
    """``client("GET", "/count/x")``; keywords are the middleware's."""
    endpoints = Endpoints(backend, script)

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        policy = RetryPolicy(wait=tenacity.wait_fixed(0.02))
        options = {"policy": policy, "databases": backend.databases} | options
        transport = SHELLS[request.param](endpoints, **options)
        if isinstance(transport, httpx.AsyncBaseTransport):
            return anyio.run(partial(_send, transport, method, path))
        with httpx.Client(transport=transport, base_url="http://things") as http:
            return http.request(method, path)

    return send


async def _send(transport: httpx.AsyncBaseTransport, method: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, base_url="http://things") as http:
        return await http.request(method, path)
