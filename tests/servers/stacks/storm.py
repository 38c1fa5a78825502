"""Storm over its drivers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

from storm.exceptions import StormError
from storm.locals import Store, create_database

from tests.servers.stacks.base import Session, Stack, Where

NO_READ_TIMEOUT = "It can't be given a read timeout."
ALREADY = (
    ("disconnection", "unknown"),
    "It says that the connection was lost before, and not what in: a COMMIT it may have been.",
)


class StormSession(Session):
    def __init__(self, store: Store) -> None:
        self._store = store

    def execute(self, sql: str) -> list[Any]:
        result = self._store.execute(sql)
        rows = result.get_all() if result._raw_cursor.description else []
        result.close()
        return list(rows)

    def commit(self) -> None:
        self._store.commit()

    def rollback(self) -> None:
        self._store.rollback()

    def close(self) -> None:
        with suppress(StormError):
            self._store.close()


def uri(scheme: str, where: Where, **options: object) -> str:
    """Where, as Storm has it written. A parameter that is None is left out."""
    account = f"{where.user}:{where.password}"
    place = "" if where.socket else f"{where.host}:{where.port}"
    given = {name: value for name, value in options.items() if value is not None}
    query = f"?{urlencode(given, quote_via=quote)}" if given else ""
    return f"{scheme}://{account}@{place}/{where.database}{query}"


class StormMysqlclient(Stack):
    name = "Storm + mysqlclient"
    server = "mariadb"
    undecidable: ClassVar = {"used again after it was lost": ALREADY}
    impossible: ClassVar = {
        "silent server": "It can't be given a connect timeout.",
        "blackhole in a query": NO_READ_TIMEOUT,
    }

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        database = create_database(uri("mysql", where, unix_socket=where.socket))
        session = StormSession(Store(database))
        if autocommit:
            session.execute("SET autocommit = 1")
        return session


class StormPsycopg2(Stack):
    name = "Storm + psycopg2"
    server = "postgresql"
    undecidable: ClassVar = {
        "used again after it was lost": ALREADY,
    }
    impossible: ClassVar = {"blackhole in a query": NO_READ_TIMEOUT}

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        options = {
            "host": where.socket,
            "port": where.port if where.socket else None,
            "connect_timeout": where.connect_timeout,
            "sslmode": "disable",
            "gssencmode": "disable",
            "isolation": "autocommit" if autocommit else "read-committed",
        }
        return StormSession(Store(create_database(uri("postgres", where, **options))))


class StormSQLite(Stack):
    name = "Storm + sqlite3"
    server = "sqlite"
    impossible: ClassVar = {"shared cache locked": "It takes no URI of SQLite's."}

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        database = create_database(f"sqlite:{where.database}?timeout={where.connect_timeout}")
        return StormSession(Store(database))


STACKS: list[Stack] = [StormMysqlclient(), StormPsycopg2(), StormSQLite()]
