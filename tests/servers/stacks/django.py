"""Django's ORM connections, over every driver that can be chosen here.

psycopg2 is left out because Django takes psycopg 3 wherever that is installed, PyMySQL because it
has to pose as MySQLdb for the whole process.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import django
from django.conf import settings
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import ConnectionHandler

from tests.servers.situations.base import Verdict
from tests.servers.stacks import mysql, postgresql, sqlite
from tests.servers.stacks.base import Pool, Session, Stack, Where

ALIAS = "default"

CONNECTS_ANEW: tuple[Verdict, str] = (
    ("disconnection", "connect"),
    "Leaving atomic() connects anew, and what is raised is that this failed.",
)
SERVER_GONE = {
    f"server {how} while {what}": CONNECTS_ANEW
    for how in ("killed", "stopped")
    for what in ("idle", "running")
}
CLOSED_BY_THEN: tuple[Verdict, str] = (
    ("disconnection", "commit"),
    "By then atomic() has closed the connection, which can't be asked about autocommit any more.",
)
WRONG_PASSWORD = "pool with a wrong password"


class Django(Stack):
    """Used as an app does that has no models: with cursors, in atomic() blocks.

    Arguments:
        driver: the driver's own stack; what can't happen to that can't happen here either.
        backend: the module of Django's.
        options: what the driver calls the fields of `Where`, and other options of it.
        undecidable: as the stack's.
    """

    def __init__(
        self,
        driver: Stack,
        backend: str,
        fields: dict[str, str],
        undecidable: dict[str, tuple[Verdict, str]],
        **options: Any,
    ) -> None:
        self.name = f"Django + {driver.name}"
        self.server = driver.server
        self.undecidable = undecidable
        self.differs = SERVER_GONE if driver.server != "sqlite" else {}
        self.impossible = {
            **driver.impossible,
            "pool closed": "A pool that was closed is replaced by a new one, which can be used.",
        }
        self._backend = backend
        self._fields = fields
        self._options = options

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        wrapper = self._wrapper(where)
        wrapper.ensure_connection()
        return DjangoSession(wrapper) if autocommit else AtomicSession(wrapper)

    def _wrapper(self, where: Where, **options: Any) -> BaseDatabaseWrapper:
        if not settings.configured:
            settings.configure(USE_TZ=True)
            django.setup()
        for option, field in self._fields.items():
            if getattr(where, field) is not None:
                options[option] = getattr(where, field)
        database = {
            "ENGINE": f"django.db.backends.{self._backend}",
            "NAME": where.database,
            "OPTIONS": self._options | options,
        }
        if self.server != "sqlite":
            database |= {
                "USER": where.user,
                "PASSWORD": where.password,
                "HOST": where.socket or where.host,
                "PORT": str(where.port),
            }
        wrapper = ConnectionHandler({ALIAS: database}).create_connection(ALIAS)
        wrapper.inc_thread_sharing()
        return wrapper


class DjangoWithPool(Django):
    """The backend has a pool of its own."""

    def pool(self, where: Where) -> Pool:
        sizes = {"min_size": 0, "max_size": 1, "timeout": 1}
        return DjangoPool(self, where, sizes)


class DjangoSession(Session):
    """Without a transaction: the default."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.wrapper = wrapper

    def execute(self, sql: str) -> list[Any]:
        with self.wrapper.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []

    def commit(self) -> None:
        self.wrapper.commit()

    def rollback(self) -> None:
        self.wrapper.rollback()

    def close(self) -> None:
        self.wrapper.close()


class AtomicSession(DjangoSession):
    """In an atomic() block, which an exception leaves, as it would a ``with`` statement."""

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        super().__init__(wrapper)
        self._block: Any = None

    def execute(self, sql: str) -> list[Any]:
        if self._block is None:
            connections[ALIAS] = self.wrapper  # where atomic() looks for it, in this thread
            block = transaction.atomic()
            block.__enter__()
            self._block = block
        try:
            return super().execute(sql)
        except BaseException:
            self._leave(*sys.exc_info())
            self.wrapper.close()  # as at the end of the request
            raise

    def commit(self) -> None:
        if self._block is None:
            super().commit()
        self._leave(None, None, None)

    def rollback(self) -> None:
        if self._block is None:
            super().rollback()
        else:
            self.wrapper.set_rollback(True)
            self._leave(None, None, None)

    def close(self) -> None:
        self._block = None
        self.wrapper.in_atomic_block = False
        super().close()

    def _leave(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            connections[ALIAS] = self.wrapper
            try:
                block.__exit__(exc_type, exc, traceback)
            except BaseException:
                self.wrapper.close()  # as at the end of the request
                raise


class DjangoPool(Pool):
    """One pool, and the wrappers of as many threads as ask for a connection of it."""

    def __init__(self, stack: Django, where: Where, sizes: dict[str, Any]) -> None:
        self._wrappers: list[Any] = []
        self._open = lambda: stack._wrapper(where, pool=sizes)

    def acquire(self) -> Any:
        wrapper = self._open()
        self._wrappers.append(wrapper)
        wrapper.ensure_connection()
        return wrapper

    def close(self) -> None:
        for wrapper in self._wrappers:
            wrapper.close()
            if wrapper.alias in wrapper._connection_pools:
                wrapper.close_pool()


STACKS: list[Stack] = [
    Django(
        mysql.Mysqlclient(),
        "mysql",
        {"connect_timeout": "connect_timeout", "read_timeout": "read_timeout"},
        {"cut in an INSERT": CLOSED_BY_THEN},
        isolation_level="repeatable read",
    ),
    DjangoWithPool(
        postgresql.Psycopg(),
        "postgresql",
        {"connect_timeout": "connect_timeout"},
        {WRONG_PASSWORD: postgresql.Psycopg.undecidable[WRONG_PASSWORD]},
    ),
    Django(sqlite.SQLite(), "sqlite3", {"timeout": "connect_timeout"}, {}),
]
