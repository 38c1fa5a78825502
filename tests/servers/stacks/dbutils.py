"""DBUtils' pool over its drivers.

Outside of ``begin()`` it executes a statement that was lost once more, on a new connection, be it
in the midst of a transaction; so `begin` is called, as its documentation has it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg2
import pymysql
from dbutils.pooled_db import PooledDB

from tests.servers.stacks.base import DBAPISession, Pool, Session, Stack, Where
from tests.servers.stacks.peewee import mysql_arguments, postgresql_arguments

EXECUTES_AGAIN = "Outside of a transaction it executes the statement again, on a new connection."
OPENS_AGAIN = "A pool that was closed opens again."


class DBUtilsSession(DBAPISession):
    def __init__(self, pool: PooledDB, autocommit: bool) -> None:
        super().__init__(pool.connection())
        self._pool = pool
        self._begun = autocommit
        self._autocommit = autocommit

    def execute(self, sql: str) -> list[Any]:
        if not self._begun:
            self.connection.begin()
            self._begun = True
        return super().execute(sql)

    def commit(self) -> None:
        self._begun = self._autocommit
        super().commit()

    def rollback(self) -> None:
        self._begun = self._autocommit
        super().rollback()

    def close(self) -> None:
        super().close()
        self._pool.close()


class DBUtilsPool(Pool):
    def __init__(self, pool: PooledDB) -> None:
        self._pool = pool
        self._taken: list[Any] = []

    def acquire(self) -> Any:
        connection = self._pool.connection()
        self._taken.append(connection)
        return connection

    def close(self) -> None:
        while self._taken:
            self._taken.pop().close()
        self._pool.close()


class DBUtils(Stack):
    """DBUtils over a driver."""

    def build(self, where: Where, autocommit: bool) -> PooledDB:
        """A pool of one connection."""
        raise NotImplementedError

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        return DBUtilsSession(self.build(where, autocommit), autocommit)

    def pool(self, where: Where) -> Pool:
        return DBUtilsPool(self.build(where, autocommit=False))


class DBUtilsPyMySQL(DBUtils):
    name = "DBUtils + PyMySQL"
    server = "mariadb"
    impossible: ClassVar = {
        "cut in autocommit": EXECUTES_AGAIN,
        "cut in a SELECT in autocommit": EXECUTES_AGAIN,
        "pool closed": OPENS_AGAIN,
    }

    def build(self, where: Where, autocommit: bool) -> PooledDB:
        arguments = {"database": where.database, "autocommit": autocommit}
        return PooledDB(pymysql, maxconnections=1, **mysql_arguments(where), **arguments)


class DBUtilsPsycopg2(DBUtils):
    name = "DBUtils + psycopg2"
    server = "postgresql"
    impossible: ClassVar = DBUtilsPyMySQL.impossible | {
        "blackhole in a query": "It has no read timeout."
    }

    def build(self, where: Where, autocommit: bool) -> PooledDB:
        def connect(**arguments: Any) -> Any:
            connection = psycopg2.connect(**arguments)
            connection.autocommit = autocommit
            return connection

        connect.dbapi = psycopg2  # type: ignore[attr-defined]  # where it finds the exceptions
        arguments = postgresql_arguments(where)
        return PooledDB(connect, maxconnections=1, dbname=where.database, **arguments)


STACKS: list[Stack] = [DBUtilsPyMySQL(), DBUtilsPsycopg2()]
