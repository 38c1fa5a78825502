"""A request-scoped Storm store: the same one for the whole attempt, undone with it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

import storm.database  # type: ignore[import-untyped]
from storm.databases.mysql import MySQL  # type: ignore[import-untyped]
from storm.databases.postgres import Postgres  # type: ignore[import-untyped]
from storm.store import Store  # type: ignore[import-untyped]
from storm.uri import URI  # type: ignore[import-untyped]

from retrymw._context import Attempt
from retrymw.adapters._loans import Commit, Lender
from retrymw.adapters._pools import PoolFactory
from retrymw.adapters._storm_connection import tracked

__all__ = ["Database"]

_TIMEOUTS: Final = {"connect_timeout": 10, "read_timeout": 30, "write_timeout": 30}


class Database(Lender[Any]):
    """A MariaDB, MySQL or PostgreSQL database whose Storm stores belong to attempts.

    Give it to the middleware (``databases=[database]``) and use :meth:`store` everywhere. The store
    is made on first use in an attempt and is the same one for the whole attempt. A failed attempt's
    is rolled back and closed before any wait (G1, G8), a successful one's after the response.
    Commit is yours to call; what you did not commit is rolled back. A COMMIT that was sent and not
    answered makes the outcome unknown (G4), and so does any statement that commits by itself.

    Args:
        database: a URI, as for ``create_database``, or what that returns, which stays as it is.
        pool: where raw connections come from: a factory of a SQLAlchemy pool, given a function that
            connects, such as ``functools.partial(QueuePool, pool_size=10)``. None opens one for
            each store and closes it afterwards.
        commit: ``"on-success"`` to have the middleware commit what an attempt leaves, before the
            first byte of a response below 400. None leaves it to you.

    With a URI, ``connect_timeout`` is 10 seconds unless it has that option; for MariaDB and MySQL
    ``read_timeout`` and ``write_timeout`` are options as well, 30 seconds each.

    Raises:
        TypeError: ``database`` is neither.
        ValueError: Storm does not know the URI's scheme, a timeout is no whole number, or
            ``commit`` is neither None nor ``"on-success"``.
    """

    def __init__(
        self, database: Any, *, pool: PoolFactory | None = None, commit: Commit = None
    ) -> None:
        super().__init__(commit=commit)
        if isinstance(database, (str, URI)):
            database = _create(database)
        if not isinstance(database, (MySQL, Postgres)):
            raise TypeError(
                f"Database was given {database!r}; allowed: the URI of a MySQL or PostgreSQL "
                "database, or what Storm's create_database() makes of it"
            )
        self._database = tracked(database, pool)

    def __repr__(self) -> str:
        uri = self._database.get_uri()
        return f"<Database {uri.scheme}://{uri.host or ''}:{uri.port or ''}/{uri.database or ''}>"

    def store(self) -> AbstractContextManager[Any]:
        """The attempt's ``Store``; outside a request, one of its own, closed at the end.

        Raises:
            Exception: what Storm or the pool raises when they can't connect.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        return self._lent()

    def ping(self) -> None:
        """Connect and disconnect; raises what Storm raises."""
        self._database.connection_factory.home.connect_directly().close()

    def _open(self, attempt: Attempt | None) -> Any:
        store = Store(self._database)
        store._connection.tracker.lend(attempt, self)
        return store

    def _check(self, store: Any, attempt: Attempt | None) -> None:
        if store._connection.closed_by_app:
            raise RuntimeError(
                f"the store of {attempt!r} was closed by the app: leave that to the middleware"
            )

    def _commit(self, store: Any) -> None:
        connection = store._connection
        if connection.tracker.doubtful:  # it raises if the server would only roll back
            connection.execute("SELECT 1", noresult=True)
        store.commit()

    def _roll_back(self, store: Any) -> None:
        with store._connection.undoing() as free:
            if free:
                store.rollback()

    def _give_back(self, store: Any) -> None:
        store.close()


def _create(uri: Any) -> Any:
    """Storm's database, with timeouts; it has none for MySQL, and no limit for PostgreSQL."""
    uri = URI(uri) if isinstance(uri, str) else uri.copy()
    if uri.scheme == "postgres":
        uri.options.setdefault("connect_timeout", _TIMEOUTS["connect_timeout"])
    try:
        database = storm.database.create_database(uri)
    except ImportError as exc:
        raise ValueError(
            f"the URI's scheme is {uri.scheme!r}; allowed: 'mysql', 'postgres', or one of your own "
            "that was registered"
        ) from exc
    if isinstance(database, MySQL):
        for name, default in _TIMEOUTS.items():
            seconds = uri.options.get(name, default)
            try:
                database._connect_kwargs[name] = int(seconds)
            except ValueError:
                raise ValueError(f"{name} is {seconds!r}; allowed: whole seconds") from None
    return database
