"""A peewee database whose connection belongs to the attempt, and release_connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import peewee  # type: ignore[import-untyped,unused-ignore]
from playhouse.pool import PooledDatabase  # type: ignore[import-untyped,unused-ignore]

from retrymw._context import Attempt
from retrymw.adapters._loans import Commit, Keeper
from retrymw.adapters._peewee_loan import Loan
from retrymw.adapters._peewee_release import releasing
from retrymw.adapters._peewee_watch import State, watch

__all__ = ["Database", "release_connection"]

F = TypeVar("F", bound=Callable[..., Any])

_peewee: Final[Any] = peewee  # what is used of it is not in its stubs


class Database(Keeper):
    """A peewee database whose connection state belongs to attempts, not to threads.

    Give it to the middleware (``databases=[Database(database)]``) and go on using peewee's own
    object, models and ``atomic()``. The connection is opened on first use in an attempt, and all
    threads and tasks of the attempt have the same one. A failed attempt's is rolled back and given
    back before any wait (G1, G8), a successful one's after the response. A COMMIT that was sent and
    not answered makes the outcome unknown (G4), and so does a write outside of ``atomic()``, which
    commits by itself. Outside of attempts peewee works as it does by itself.

    Args:
        database: a ``MySQLDatabase`` or ``PostgresqlDatabase``, pooled or not.
        commit: ``"on-success"`` to have the middleware make one transaction of what an attempt
            does, and commit it before the first byte of a response below 400; ``atomic()`` is a
            savepoint in it then, and ``close()`` does nothing. What functions of ``after_commit()``
            write is committed after each. None leaves transactions to you.

    Raises:
        TypeError: ``database`` is none of these.
        ValueError: it has an adapter already, or ``commit`` is neither None nor ``"on-success"``.
    """

    def __init__(self, database: Any, *, commit: Commit = None) -> None:
        super().__init__(commit=commit)
        if not isinstance(database, (_peewee.MySQLDatabase, _peewee.PostgresqlDatabase)) or any(
            base.__module__ == "playhouse.pwasyncio" for base in type(database).__mro__
        ):
            raise TypeError(
                f"Database was given database={database!r}; allowed: a MySQLDatabase or "
                "PostgresqlDatabase of peewee's, pooled or not, but not async (of a DatabaseProxy, "
                "its .obj)"
            )
        if isinstance(database._state, State):
            raise ValueError(
                f"Database was given database={database!r}, which has an adapter already; allowed: "
                "one for each"
            )
        self.database = database
        watch(database, self, self._lend)

    def __repr__(self) -> str:
        name = str(self.database.database).rpartition("@")[2].partition("?")[0]
        return f"<Database {'' if '=' in name else name}>"

    def ping(self) -> None:
        """Connect and disconnect, past the pool; raises what peewee raises."""
        database = self.database
        pooled = isinstance(database, PooledDatabase)
        above: Any = super(PooledDatabase, database) if pooled else database
        with _peewee.__exception_wrapper__:
            above._connect().close()

    def _lend(self, attempt: Attempt) -> Loan:
        return Loan(self.database, attempt, unit=self.commits_on_success)


def release_connection(database: Any) -> Callable[[F], F]:
    """Decorate what uses the database, to give its connection back at the end.

    For functions and methods of a data layer that threads call: peewee binds a connection to the
    thread that opens it, and a pool runs dry when threads keep theirs. Of functions that call each
    other the outermost one gives back. A generator does so after its last item, when it is closed,
    and on an error. Within ``atomic()`` and peewee's other ``with`` blocks nothing is given back,
    nor in the middle of a statement, where the garbage collector may close a generator. A
    connection that failed is closed. An error while closing is logged at DEBUG, and hides nothing.

    Works in attempts, and in plain threads without any middleware. Coroutine functions and async
    generator functions are fine, too.

    Args:
        database: peewee's, a ``DatabaseProxy``, or a :class:`Database`.

    Raises:
        TypeError: ``database`` is none of these.
    """
    inner = database.database if isinstance(database, Database) else database
    if not isinstance(inner, (peewee.Database, peewee.Proxy)):
        raise TypeError(
            f"release_connection was given {inner!r}; allowed: a database of peewee's, or a "
            "Database, as in @release_connection(database)"
        )
    return lambda function: releasing(inner, function)
