"""Watched engines of other people's making: SQLModel on FastAPI, and Flask-SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import flask
import httpx
import pytest
import sqlmodel
import tenacity
from fastapi import Depends, FastAPI
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from retrymw import RetryPolicy, current_attempt, rollback_safe
from retrymw.adapters.sqlalchemy import watch
from retrymw.asgi import RetryMiddleware
from retrymw.integrations.flask import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL

Server = MariaDB | PostgreSQL
Reached = Callable[[str], None]
Post = Callable[[], Any]

POLICY = RetryPolicy(wait=tenacity.wait_none())
DIALECTS = {"mariadb": "mysql+pymysql", "postgresql": "postgresql+psycopg"}


class Thing(sqlmodel.SQLModel, table=True):
    """A thing has a name."""

    __tablename__ = "things"
    name: str = sqlmodel.Field(primary_key=True, max_length=50)


@pytest.fixture(params=DIALECTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with a table for things."""
    server: Server = request.getfixturevalue(kind)
    with things(server):
        yield server


@pytest.fixture
def proxy(kind: str, server: Server, request: pytest.FixtureRequest) -> FaultProxy:
    proxy: FaultProxy = request.getfixturevalue(f"{kind}_proxy")
    return proxy


@pytest.fixture
def url(kind: str, server: Server, proxy: FaultProxy) -> str:
    account = f"{server.user}:{server.password}"
    return f"{DIALECTS[kind]}://{account}@{proxy.host}:{proxy.port}/{server.database}"


def names(server: Server) -> list[str]:
    """What is stored, as the server itself sees it."""
    return [row[0] for row in server.execute("SELECT name FROM app.things ORDER BY name")]


@pytest.fixture
def moments(proxy: FaultProxy) -> dict[str, Callable[[], object]]:
    """What is to go wrong in the first attempt, by the moment."""
    return {}


@pytest.fixture
def reached(moments: dict[str, Callable[[], object]]) -> Reached:
    def reached(moment: str) -> None:
        if current_attempt().number == 1 and moment in moments:
            moments[moment]()

    return reached


@pytest.fixture(params=["sqlmodel", "flask-sqlalchemy"])
def post(request: pytest.FixtureRequest, url: str, reached: Reached) -> Iterator[Post]:
    """Post a thing to an app that adds it, commits, and refreshes what it has."""
    make = {"sqlmodel": _sqlmodel, "flask-sqlalchemy": _flask_sqlalchemy}[request.param]
    post, engine = make(url, reached)
    yield post
    engine.dispose()


def _sqlmodel(url: str, reached: Reached) -> tuple[Post, Engine]:
    engine = sqlmodel.create_engine(url)
    watch(engine)
    app = FastAPI()

    def session() -> Iterator[sqlmodel.Session]:
        with sqlmodel.Session(engine) as session:
            yield session

    @app.post("/things/{name}")
    @rollback_safe
    def add(name: str, session: sqlmodel.Session = Depends(session)) -> Thing:  # noqa: B008
        thing = Thing(name=name)
        session.connection()
        reached("opened")
        session.add(thing)
        session.flush()
        reached("flushed")
        session.commit()
        reached("committed")
        session.refresh(thing)
        return thing

    app.add_middleware(RetryMiddleware, policy=POLICY)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://things") as http:
            return await http.post("/things/a")

    return lambda: anyio.run(post), engine


def _flask_sqlalchemy(url: str, reached: Reached) -> tuple[Post, Engine]:
    class Base(DeclarativeBase):
        pass

    app = flask.Flask("things")
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy(app, model_class=Base)

    class Thing(db.Model):  # type: ignore[name-defined,misc]  # made at run time
        __tablename__ = "things"
        name: Mapped[str] = mapped_column(String(50), primary_key=True)

    with app.app_context():
        engine = db.engine
        watch(engine)

    @app.post("/things/<name>")
    @rollback_safe
    def add(name: str) -> Any:
        thing = Thing(name=name)
        db.session.connection()
        reached("opened")
        db.session.add(thing)
        db.session.flush()
        reached("flushed")
        db.session.commit()
        reached("committed")
        db.session.refresh(thing)
        return {"name": thing.name}

    Retry(app, policy=POLICY)
    return lambda: app.test_client().post("/things/a"), engine


def told(response: Any) -> tuple[int, str | None, str | None]:
    headers = response.headers
    return response.status_code, headers.get("retry-attempts"), headers.get("retry-outcome")


def test_nothing_fails(post: Post, server: Server) -> None:
    """G5: a watched engine changes nothing."""
    response = post()
    assert told(response) == (200, None, None)
    assert names(server) == ["a"]


def test_lost_before_the_commit(
    post: Post, server: Server, proxy: FaultProxy, moments: dict[str, Callable[[], object]]
) -> None:
    """G3: what is lost in a statement, before the commit, is replayed and takes effect once."""
    moments["opened"] = lambda: proxy.cut("reset", at=1)
    assert told(post()) == (200, "2", "recovered")
    assert names(server) == ["a"]


def test_lost_in_the_commit(
    post: Post, server: Server, proxy: FaultProxy, moments: dict[str, Callable[[], object]]
) -> None:
    """G4: a COMMIT that was not answered makes the outcome unknown."""
    moments["flushed"] = lambda: proxy.cut("reset", at="commit")
    assert told(post()) == (503, "1", "unknown")
    assert names(server) == ["a"]


def test_lost_in_the_refresh(
    post: Post, server: Server, proxy: FaultProxy, moments: dict[str, Callable[[], object]]
) -> None:
    """G4: an app that commits, and loses the connection when it refreshes, is not run twice."""
    moments["committed"] = lambda: proxy.cut("reset", at=1)
    assert told(post()) == (503, "1", "committed")
    assert names(server) == ["a"]
