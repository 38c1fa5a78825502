"""The drivers of MariaDB and MySQL."""

from __future__ import annotations

import pymysql

from tests.servers.stacks.base import DBAPISession, Session, Stack, Where


class PyMySQL(Stack):
    name = "PyMySQL"
    server = "mariadb"

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        return DBAPISession(
            pymysql.connect(
                host=where.host,
                port=where.port,
                user=where.user,
                password=where.password,
                database=where.database,
                unix_socket=where.socket,
                connect_timeout=where.connect_timeout,
                read_timeout=where.read_timeout or where.connect_timeout,
                ssl_disabled=True,
                autocommit=autocommit,
            )
        )


STACKS = [PyMySQL()]
