"""A request-scoped PyMySQL connection: the same one for the whole attempt, undone with it."""

from __future__ import annotations

import functools
import inspect
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

import pymysql
import pymysql.connections

from retrymw._context import Attempt, current_attempt
from retrymw.adapters._statements import Transaction
from retrymw.classify import classify, sql

__all__ = ["Connection", "Database"]

_UNDO_SECONDS: Final = 2.0
_PARAMETERS: Final = frozenset(inspect.signature(pymysql.connections.Connection).parameters)


class Pool(Protocol):
    """What is used of a ``sqlalchemy.pool.Pool``."""

    def connect(self) -> Any: ...
    def recreate(self) -> Any: ...
    def dispose(self) -> None: ...


class Database:
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
        **connect_args: as for ``pymysql.connect``. ``connect_timeout``, ``read_timeout`` and
            ``write_timeout`` are 10, 30 and 30 seconds unless given: nothing waits without a bound.

    Raises:
        TypeError: for a keyword that ``pymysql.connect`` does not know.
    """

    def __init__(
        self, *, pool: Callable[[Callable[[], Connection]], Pool] | None = None, **connect_args: Any
    ) -> None:
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
        self._open = functools.partial(Connection, **self._connect_args)
        self._pool = pool(self._open) if pool is not None else None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        arguments = self._connect_args
        place = arguments.get("unix_socket") or (
            f"{arguments.get('host') or 'localhost'}:{arguments.get('port') or 3306}"
        )
        return f"<Database {place}/{arguments.get('database') or arguments.get('db') or ''}>"

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The attempt's connection; outside a request, one of its own, given back at the end.

        Raises:
            pymysql.err.OperationalError: as ``pymysql.connect`` raises it.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        attempt = current_attempt(None)
        if attempt is None:
            with _Loan(self) as loan:
                yield loan.connection()
        else:
            resources = attempt.resource(self)
            loan = resources.get(self) or resources.setdefault(self, _Loan(self, attempt))
            yield loan.connection()

    def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction, within four seconds."""
        loan = self._loan(attempt)
        if loan is not None:
            loan.rollback()

    def release(self, attempt: Attempt) -> None:
        """Give the attempt's connection back, or close it if it is not fit for another use."""
        loan = self._loan(attempt)
        if loan is not None:
            loan.give_back()

    def ping(self) -> None:
        """Connect and disconnect; raises what ``pymysql.connect`` raises."""
        self._open().close()

    def _loan(self, attempt: Attempt) -> _Loan | None:
        return (attempt.resources or {}).get(self)

    def _renew(self, pool: Pool) -> None:
        """Forget the pool's other connections: the server that dropped one dropped them all."""
        with self._lock:
            if self._pool is not pool:
                return  # another attempt did it already
            self._pool = pool.recreate()
        pool.dispose()


class Connection(pymysql.connections.Connection):
    """A PyMySQL connection that tells its attempt of failures and commits.

    Statements of several threads take turns; PyMySQL by itself mixes up their answers.
    """

    attempt: Attempt | None = None
    lost = False
    _plain_ssl_context: ssl.SSLContext | None = None

    def __init__(self, **connect_args: Any) -> None:
        self._turn = threading.RLock()
        self._transaction = Transaction()
        super().__init__(**connect_args)
        self.autocommit_at_first = self.get_autocommit()

    def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """As in PyMySQL; the statements that it does not send through here are tracked below."""
        statement = sql.encode(self.encoding, "surrogateescape") if isinstance(sql, str) else sql
        return self._tracked(bytes(statement), functools.partial(super().query, sql, unbuffered))

    def commit(self) -> None:
        """As in PyMySQL; a lost answer makes the outcome unknown (G4)."""
        self._tracked(b"COMMIT", super().commit)

    def rollback(self) -> None:
        """As in PyMySQL."""
        self._tracked(b"ROLLBACK", super().rollback)

    def begin(self) -> None:
        """As in PyMySQL."""
        self._tracked(b"BEGIN", super().begin)

    def autocommit(self, value: bool | None) -> None:
        """As in PyMySQL; switching it on commits."""
        self._tracked(b"SET autocommit", functools.partial(super().autocommit, value))

    def interrupt(self) -> None:
        """Wait two seconds at most for a statement of another thread, then cut the connection."""
        if self._turn.acquire(timeout=_UNDO_SECONDS):
            self._turn.release()
            return
        self.lost = True
        with suppress(OSError, AttributeError):  # the other thread was faster
            getattr(self, "_sock", None).shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]  # may be None

    def _tracked(self, statement: bytes, send: Callable[[], Any]) -> Any:
        with self._turn:
            attempt, autocommit = self.attempt, bool(self.get_autocommit())
            commits = (
                attempt is not None
                and self.open  # or nothing is sent
                and self._transaction.commits(statement, autocommit=autocommit)
            )
            if attempt is not None and commits:
                attempt.commit_sent()
            try:
                answer = send()
            except Exception as exc:
                failure = classify(exc)
                self.lost = self.lost or (failure is not None and failure.kind == "disconnection")
                if attempt is not None:
                    if commits and not self.lost:
                        # DDL that is refused has committed what went before it all the same.
                        implicit = not autocommit and not sql.is_commit(
                            sql.without_comments(statement)
                        )
                        attempt.commit_answered(committed=implicit)
                    if failure is not None:
                        attempt.doom(exc)
                raise
            if attempt is not None and commits:
                attempt.commit_answered(committed=True)
            self._transaction.answered(statement, autocommit=autocommit)
            return answer

    @property
    def closed_by_app(self) -> bool:
        """Whether somebody called close()."""
        return bool(getattr(self, "_closed", False))

    @property
    def is_as_it_was(self) -> bool:
        """Whether another attempt may have this connection."""
        return self.open and not self.lost and self.get_autocommit() == self.autocommit_at_first

    def hurry(self) -> None:
        """What is sent from now on is answered within two seconds, or the connection is lost."""
        self._read_timeout = _UNDO_SECONDS

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


class _Loan:
    """A connection on loan to an attempt, or to a ``with`` block outside of requests."""

    def __init__(self, database: Database, attempt: Attempt | None = None) -> None:
        self._database = database
        self._attempt = attempt
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._proxy: Any = None
        self._pool: Pool | None = None
        self._over = False

    def __enter__(self) -> _Loan:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def connection(self) -> Connection:
        with self._lock:
            if self._over:
                raise RuntimeError(f"the connection of {self._attempt!r} was given back already")
            if self._connection is not None and self._connection.closed_by_app:
                raise RuntimeError(
                    f"the connection of {self._attempt!r} was closed by the app: leave that to the "
                    "middleware, and don't use it as a context manager of its own"
                )
            if self._connection is None:
                try:
                    self._connection = self._connect()
                except Exception as exc:
                    if self._attempt is not None:
                        self._attempt.saw(exc)
                    raise
            return self._connection

    def _connect(self) -> Connection:
        database = self._database
        pool = database._pool
        if pool is None:
            connection = database._open()
        else:
            self._pool = pool
            self._proxy = pool.connect()
            connection = self._proxy.dbapi_connection
            connection.relax(database._connect_args["read_timeout"])
        connection.attempt = self._attempt
        return connection

    def rollback(self) -> None:
        with self._lock:
            connection = self._connection
            if connection is not None and connection.open and not connection.lost:
                connection.attempt = None
                connection.hurry()
                connection.interrupt()
                if not connection.lost:
                    connection.rollback()

    def give_back(self) -> None:
        with self._lock:
            self._over = True
            connection, self._connection = self._connection, None
            proxy, self._proxy = self._proxy, None
            pool = self._pool
            if connection is None:
                return
            connection.attempt = None
            connection.hurry()
            connection.interrupt()
            if pool is None:
                if connection.open:
                    connection.close()
            elif connection.is_as_it_was and pool is self._database._pool:
                proxy.close()
            else:
                dropped = connection.lost or not (connection.open or connection.closed_by_app)
                proxy.invalidate()
                if dropped:
                    self._database._renew(pool)
