"""A request-scoped PyMySQL connection: the same one for the whole attempt, undone with it."""

from __future__ import annotations

import functools
import inspect
import ssl
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import pymysql
import pymysql.connections

from retrymw._context import Attempt
from retrymw.adapters._loans import Commit, Lender
from retrymw.adapters._pools import Home, Pool, PoolFactory
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import UNDO_SECONDS, Wire

__all__ = ["Connection", "Database"]

_PARAMETERS: Final = frozenset(inspect.signature(pymysql.connections.Connection).parameters)


class Database(Lender["Connection"]):
    """A MariaDB or MySQL database whose connections belong to attempts.

    Give it to the middleware (``databases=[database]``) and use :meth:`connection` everywhere. The
    connection is opened on first use in an attempt and is the same one for the whole attempt, from
    async or threaded code. A failed attempt's is rolled back and given back before any wait (G1,
    G8), a successful one's after the response. Commit is yours to call; what you did not commit is
    rolled back. A COMMIT that was sent and not answered makes the outcome unknown (G4), and so does
    any statement that commits by itself: DML under ``autocommit``, DDL.

    Args:
        pool: where connections come from: a factory of a SQLAlchemy pool, given a function that
            connects, such as ``functools.partial(QueuePool, pool_size=10)``. None opens one for
            each attempt and closes it afterwards.
        commit: ``"on-success"`` to have the middleware commit what an attempt leaves, before the
            first byte of a response below 400. None leaves it to you.
        **connect_args: as for ``pymysql.connect``. ``connect_timeout``, ``read_timeout`` and
            ``write_timeout`` are 10, 30 and 30 seconds unless given: nothing waits without a bound.

    Raises:
        TypeError: for a keyword that ``pymysql.connect`` does not know.
        ValueError: ``commit`` is neither None nor ``"on-success"``.
    """

    def __init__(
        self,
        *,
        pool: PoolFactory | None = None,
        commit: Commit = None,
        **connect_args: Any,
    ) -> None:
        super().__init__(commit=commit)
        for name in connect_args.keys() - _PARAMETERS:
            raise TypeError(
                f"Database was given {name}={connect_args[name]!r}; allowed: what pymysql.connect "
                "takes"
            )
        self._connect_args = {
            "connect_timeout": 10,
            "read_timeout": 30,
            "write_timeout": 30,
            **connect_args,
        }
        if self._connect_args.get("defer_connect"):
            raise TypeError(
                "Database was given defer_connect=True; allowed: False, or leave it out"
            )
        self._home = Home(functools.partial(Connection, **self._connect_args), pool)

    def __repr__(self) -> str:
        arguments = self._connect_args
        place = arguments.get("unix_socket") or (
            f"{arguments.get('host') or 'localhost'}:{arguments.get('port') or 3306}"
        )
        return f"<Database {place}/{arguments.get('database') or arguments.get('db') or ''}>"

    def connection(self) -> AbstractContextManager[Connection]:
        """The attempt's connection; outside a request, one of its own, given back at the end.

        Raises:
            Exception: what the driver or its pool raises when they can't connect.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        return self._lent()

    def ping(self) -> None:
        """Connect and disconnect; raises what ``pymysql.connect`` raises."""
        self._home.connect_directly().close()

    def _open(self, attempt: Attempt | None) -> Connection:
        pool = self._home.pool
        if pool is None:
            connection: Connection = self._home.connect_directly()
        else:
            proxy = pool.connect()
            connection = proxy.dbapi_connection
            connection.home = pool, proxy
            connection.relax(self._connect_args["read_timeout"])
        connection.tracker.lend(attempt, self)
        return connection

    def _check(self, connection: Connection, attempt: Attempt | None) -> None:
        if connection.closed_by_app:
            raise RuntimeError(
                f"the connection of {attempt!r} was closed by the app: leave that to the "
                "middleware, and don't use it as a context manager of its own"
            )

    def _commit(self, connection: Connection) -> None:
        connection.commit()

    def _roll_back(self, connection: Connection) -> None:
        if connection.is_ready():
            connection.tracker.lend(None)
            connection.rollback()

    def _give_back(self, connection: Connection) -> None:
        connection.is_ready()
        connection.tracker.lend(None)
        home, connection.home = connection.home, None
        if home is None:
            if connection.open:
                connection.close()
            return
        pool, proxy = home
        if connection.is_as_it_was and pool is self._home.pool:
            proxy.close()
        else:
            dropped = connection.tracker.lost or not (connection.open or connection.closed_by_app)
            proxy.invalidate()
            if dropped:
                self._home.renew(pool)


class Connection(pymysql.connections.Connection):
    """A PyMySQL connection that tells its attempt of failures and commits.

    Statements of several threads take turns; PyMySQL by itself mixes up their answers.
    """

    home: tuple[Pool, Any] | None = None  # the pool that it is from, and what that pool handed out
    _plain_ssl_context: ssl.SSLContext | None = None

    def __init__(self, **connect_args: Any) -> None:
        self._turn = threading.RLock()
        self.tracker = Tracker(pymysql.err.MySQLError, ddl_commits=True)
        super().__init__(**connect_args)
        self.autocommit_at_first = self.get_autocommit()

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """As in PyMySQL; the statements that it does not send through here are tracked below."""
        statement = sql.encode(self.encoding, "surrogateescape") if isinstance(sql, str) else sql
        with self._sending(bytes(statement)):
            return super().query(sql, unbuffered)

    def commit(self) -> None:
        """As in PyMySQL; a lost answer makes the outcome unknown (G4)."""
        with self._sending(b"COMMIT"):
            super().commit()

    def rollback(self) -> None:
        """As in PyMySQL."""
        with self._sending(b"ROLLBACK"):
            super().rollback()

    def begin(self) -> None:
        """As in PyMySQL."""
        with self._sending(b"BEGIN"):
            super().begin()

    def autocommit(self, value: bool | None) -> None:
        """As in PyMySQL; switching it on commits."""
        with self._sending(b"SET autocommit"):
            super().autocommit(value)

    def select_db(self, db: Any) -> None:
        """As in PyMySQL; the connection goes to nobody else then."""
        self.tracker.touched = True
        super().select_db(db)

    def connect(self, sock: Any = None) -> None:
        """As in PyMySQL; but not again in an attempt, which would go on with half a transaction."""
        if self.tracker.attempt is not None:
            raise RuntimeError("the connection of an attempt can't be connected again")
        super().connect(sock)

    def ping(self, reconnect: Any = True) -> None:
        """As in PyMySQL; but in an attempt it does not connect again."""
        with self._sending(b"SELECT 1"):
            super().ping(bool(reconnect) and self.tracker.attempt is None)  # type: ignore[call-overload]

    def _read_packet(self, *args: Any) -> Any:
        if self.tracker.busy or self.tracker.attempt is None:
            return super()._read_packet(*args)  # type: ignore[no-untyped-call]
        with self._sending(b"SELECT 1"):  # a further result, or rows of an unbuffered one
            return super()._read_packet(*args)  # type: ignore[no-untyped-call]

    @contextmanager
    def _sending(self, statement: bytes) -> Iterator[None]:
        with self._turn:
            sent = statement if self.open else b""  # over a closed one nothing is sent
            with self.tracker.sending(sent, autocommit=bool(self.get_autocommit())):
                yield

    def is_ready(self) -> bool:
        """Whether this can be used to undo the attempt: from now on for two seconds at most.

        A statement of another thread is waited for as long, and then cut off.
        """
        if not self.open or self.tracker.lost:
            return False
        result: Any = getattr(self, "_result", None)
        if getattr(result, "unbuffered_active", False):
            result.unbuffered_active = False  # PyMySQL would read all the rows that are left
            self.close()
            return False
        self._read_timeout = UNDO_SECONDS
        if self._turn.acquire(timeout=UNDO_SECONDS):
            self._turn.release()
            return self.open
        self.tracker.lost = True
        Wire(self).cut()
        return False

    @property
    def closed_by_app(self) -> bool:
        """Whether somebody called close()."""
        return bool(getattr(self, "_closed", False))

    @property
    def is_as_it_was(self) -> bool:
        """Whether another attempt may have this connection."""
        unchanged = self.get_autocommit() == self.autocommit_at_first and not self.tracker.touched
        return self.open and not self.tracker.lost and unchanged

    def relax(self, read_timeout: float | None) -> None:
        """Back to the configured timeout, for the next use."""
        self._read_timeout = read_timeout  # type: ignore[assignment]  # None is allowed

    def _create_ssl_ctx(self, sslp: Any) -> ssl.SSLContext:
        # PyMySQL builds one for every connection, at 16 ms of CPU; without options they are alike.
        if sslp == {}:
            if Connection._plain_ssl_context is None:
                Connection._plain_ssl_context = super()._create_ssl_ctx(sslp)  # type: ignore[misc]  # not in the stubs
            return Connection._plain_ssl_context
        return super()._create_ssl_ctx(sslp)  # type: ignore[misc,no-any-return]  # not in the stubs
