"""What the commands share: the URL, the way into the database, what it says without passwords."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

import click
from sqlalchemy import URL, Connection, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from retrymw.classify import Failure
from retrymw.commands._background import Executor, within

__all__ = ["Database", "NoEntryError", "Seconds", "attempt_timeout", "database_url", "in_words"]

T = TypeVar("T")


@dataclass(frozen=True)
class _Driver:
    """A driver as SQLAlchemy calls it.

    Attributes:
        family: what stands before the plus sign.
        package: what to install.
        module: what is there once it is.
        timeouts: its arguments, in seconds, for what bounds a connect and an answer.
    """

    family: str
    package: str
    module: str
    timeouts: tuple[str, ...] = ()


_DRIVERS: Final = {
    "pymysql": _Driver("mysql", "PyMySQL", "pymysql", ("connect_timeout", "read_timeout")),
    "mysqldb": _Driver("mysql", "mysqlclient", "MySQLdb", ("connect_timeout", "read_timeout")),
    "mysqlconnector": _Driver(
        "mysql", "mysql-connector-python", "mysql.connector", ("connection_timeout",)
    ),
    "mariadbconnector": _Driver("mysql", "mariadb", "mariadb", ("connect_timeout", "read_timeout")),
    "aiomysql": _Driver("mysql", "aiomysql", "aiomysql", ("connect_timeout",)),
    "asyncmy": _Driver("mysql", "asyncmy", "asyncmy", ("connect_timeout",)),
    "psycopg": _Driver("postgresql", "psycopg[binary]", "psycopg", ("connect_timeout",)),
    "psycopg_async": _Driver("postgresql", "psycopg[binary]", "psycopg", ("connect_timeout",)),
    "psycopg2": _Driver("postgresql", "psycopg2-binary", "psycopg2", ("connect_timeout",)),
    "asyncpg": _Driver("postgresql", "asyncpg", "asyncpg", ("timeout",)),
    "pg8000": _Driver("postgresql", "pg8000", "pg8000", ("timeout",)),
    "pysqlite": _Driver("sqlite", "", "sqlite3"),
    "aiosqlite": _Driver("sqlite", "aiosqlite", "aiosqlite"),
}

_EXAMPLE: Final = "mysql+pymysql://user:password@host/database"
_GRACE: Final = 1.0  # seconds by which the driver's own timeout, which says more, comes first
_SECRET: Final = re.compile(r"pass|pwd|secret|token|key", re.IGNORECASE)


class _URL(click.ParamType):  # type: ignore[type-arg]  # click 8.1 has no arguments for it
    """A URL as SQLAlchemy spells it, with a driver that is installed and that we know."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> URL:
        """The URL. What is told of a wrong one has nothing in it that could be a password."""
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            wanted = f"it has to look like {_EXAMPLE}, with a number for a port"
            self.fail(f"It can't be read: {wanted}.", param, ctx)
        if "@" in f"{url.host}{url.database}":
            self.fail("In a user or password %40 has to stand for an @.", param, ctx)
        try:
            dialect = url.get_dialect()
        except (NoSuchModuleError, ArgumentError):
            spelled = " It is spelled postgresql://." if url.drivername == "postgres" else ""
            self.fail(f"SQLAlchemy knows no {url.drivername}://.{spelled}", param, ctx)
        driver = _DRIVERS.get(dialect.driver)
        if driver is None:
            known = ", ".join(_DRIVERS)
            self.fail(f"{url.drivername}:// is not among the known drivers: {known}.", param, ctx)
        try:
            dialect.import_dbapi()
        except ImportError:
            self.fail(_how_to_install(url.drivername, driver), param, ctx)
        return url


def _how_to_install(spelled: str, driver: _Driver) -> str:
    """What to do where a driver is missing: take one that is there, or install it."""
    missing = f"{spelled}:// needs {driver.module}, which is not installed."
    install = f"pip install '{driver.package}'"
    for name, other in _DRIVERS.items():
        if other.family == driver.family and _is_installed(other.module):
            return f"{missing} Spell it {driver.family}+{name}://, or try: {install}"
    return f"{missing} Try: {install}"


def _is_installed(module: str) -> bool:
    with suppress(ImportError):  # of the package that it would be in
        return importlib.util.find_spec(module) is not None
    return False


database_url: Final = click.argument(
    "url", type=_URL(), envvar="DATABASE_URL", metavar="[URL]", required=True
)


class Seconds(click.FloatRange):
    """A number of seconds; ``inf`` and ``nan`` are none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds.", param, ctx)
        return seconds


attempt_timeout: Final = click.option(
    "--attempt-timeout",
    type=Seconds(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one attempt to connect and ask may take.",
)


class Database:
    """Where a URL leads to. Nothing stays open between two pieces of work.

    Args:
        url: as SQLAlchemy spells it.
        attempt_timeout: seconds that each piece of work may take, the connect included.
    """

    def __init__(self, url: URL, attempt_timeout: float) -> None:
        dialect = url.get_dialect()
        names = [name for name in _DRIVERS[dialect.driver].timeouts if name not in url.query]
        whole = math.ceil(attempt_timeout)  # some take no fractions
        options = {"poolclass": NullPool, "connect_args": dict.fromkeys(names, whole)}
        self._run = functools.partial(_run_async if dialect.is_async else _run, url, options)
        self._patience = attempt_timeout + _GRACE
        self._secrets = sorted(filter(None, _secrets(url)), key=len, reverse=True)
        self.family = _DRIVERS[dialect.driver].family
        self.url = url
        self.name = URL.create(
            url.drivername, url.username, None, url.host, url.port, url.database
        ).render_as_string()

    def run(self, work: Callable[[Connection], T]) -> T:
        """Connect, do it, close. With an async driver as well: ``work`` is the same.

        Raises:
            DisconnectionError: there was no answer in time.
            Exception: whatever the driver, or SQLAlchemy for it, raises.
        """
        return within(self._patience, lambda: self._run(work))

    def said(self, exc: BaseException) -> str:
        """What an exception says, in one line and without the passwords of the URL."""
        exc = getattr(exc, "orig", None) or exc
        text = _text(exc) or type(exc).__name__
        for secret in self._secrets:
            if secret not in self.name:  # or we would tell that it is the same as the user
                text = text.replace(secret, "***")
        return text


class NoEntryError(click.ClickException):
    """It does not let us in: ``status`` is for the shell, ``message`` for the user."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click means it as a class variable


def in_words(failure: Failure, said: str) -> str:
    """Why the database does not let us in."""
    return f"{_WORDS[failure.kind]}: {said}"


_WORDS: Final = {
    "disconnection": "not there yet",
    "too-many-connections": "full",
    "conflict": "busy",
}


def _run(url: URL, options: dict[str, Any], work: Callable[[Connection], T]) -> T:
    with create_engine(url, **options).connect() as connection:
        return work(connection)


def _run_async(url: URL, options: dict[str, Any], work: Callable[[Connection], T]) -> T:
    async def run() -> T:
        asyncio.get_running_loop().set_default_executor(Executor())
        async with create_async_engine(url, **options).connect() as connection:
            return await connection.run_sync(work)

    return asyncio.run(run())


def _secrets(url: URL) -> Iterator[str]:
    """The passwords of a URL, as they are and as they may be spelled."""
    values = [url.password or ""]
    for name, value in url.query.items():
        if _SECRET.search(name):
            values += [value] if isinstance(value, str) else value
    for value in map(str, values):
        yield from {value, quote(value, safe=""), quote_plus(value), repr(value)[1:-1]}


def _text(exc: BaseException) -> str:
    """Drivers put a number before it, a dictionary around it, or the addresses they tried."""
    said = getattr(exc, "msg", None)  # MySQL Connector
    if said is None and exc.args:
        said = exc.args[1 if isinstance(exc.args[0], int) and len(exc.args) > 1 else 0]
    if isinstance(said, dict):  # pg8000
        said = said.get("M")
    lines = [line.strip() for line in str(said or "").splitlines() if line.strip()]
    # libpq: the last address it tried is the one that answered.
    answers = [line for line in lines if _LIBPQ.match(line)]
    text = (answers or lines or [""])[-1 if answers else 0]
    return _LIBPQ.sub("", text)


_LIBPQ: Final = re.compile(
    r"(?:- host: .*?: )?(?:connection failed: )?connection to server .*? failed: (?:FATAL:  )?"
    r"|<class '[^']*'>: "
)
