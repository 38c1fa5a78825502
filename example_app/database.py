"""The databases the shop runs on, and how it connects to them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg

from retrymw.adapters import pymysql
from retrymw.typing import Database as Adapter


class Cursor(Protocol):
    """What the shop uses of a DB-API cursor."""

    def execute(self, query: str, args: tuple[Any, ...] = ..., /) -> object: ...
    def executemany(self, query: str, args: Sequence[tuple[Any, ...]], /) -> object: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> Any: ...


class Connection(Protocol):
    """What the shop uses of a DB-API connection."""

    def cursor(self) -> AbstractContextManager[Cursor]: ...
    def commit(self) -> None: ...


class Database(Protocol):
    """Where the shop keeps its data.

    ``adapters`` is for the middleware: what it has to undo when an attempt failed.
    """

    @property
    def dialect(self) -> Literal["mysql", "postgresql"]: ...
    @property
    def adapters(self) -> Sequence[Adapter]: ...
    def connection(self) -> AbstractContextManager[Connection]:
        """A connection for one unit of work; what is not committed in it is rolled back."""


class MariaDB:
    """PyMySQL with retrymw's adapter: one connection for a whole request.

    The middleware undoes it and gives it back: leaving a ``with`` block neither commits nor closes.
    """

    dialect: ClassVar[Literal["mysql", "postgresql"]] = "mysql"

    def __init__(self, **connect_args: Any) -> None:
        self._database = pymysql.Database(**connect_args)
        self.adapters: Sequence[Adapter] = [self._database]

    def connection(self) -> AbstractContextManager[Connection]:
        return self._database.connection()


class PostgreSQL:
    """psycopg 3 without an adapter: one connection for each ``with`` block.

    The block undoes and closes it, so that nothing is left for the middleware to undo. What a
    failure means it reads off the exception, a lost answer to COMMIT too. Without an adapter it
    can't see that a COMMIT was answered, so nothing that can fail may come after one.
    """

    dialect: ClassVar[Literal["mysql", "postgresql"]] = "postgresql"
    adapters: Sequence[Adapter] = ()

    def __init__(self, url: str) -> None:
        self._url = url

    def connection(self) -> AbstractContextManager[Connection]:
        return psycopg.connect(self._url, connect_timeout=5)


def open_database(url: str) -> Database:
    """The database at ``postgresql://…``, ``mysql://…`` or ``mariadb://…``; nothing connects yet.

    What follows a ``?`` are options of libpq or of ``pymysql.connect``, such as ``ssl_ca``.

    Raises:
        ValueError: for any other URL.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.partition("+")[0]  # "mysql+pymysql" and the like are welcome
    if scheme in ("postgresql", "postgres"):
        return PostgreSQL(parts._replace(scheme=scheme).geturl())
    if scheme in ("mysql", "mariadb"):
        options: dict[str, Any] = dict(parse_qsl(parts.query))
        return MariaDB(
            host=parts.hostname or "localhost",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=parts.path.lstrip("/"),
            **options,
        )
    raise ValueError(f"the database's URL has {parts.scheme!r}; allowed: postgresql://, mysql://")
