"""Django's ORM: its connections tell the attempt what happens, and are undone with it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections  # type: ignore[import-untyped]  # no types

from retrymw._context import Attempt
from retrymw.adapters._django_watch import Watch
from retrymw.adapters._loans import loan_of

__all__ = ["Database"]

_DUMMY: Final = "django.db.backends.dummy"

_making: Final = threading.Lock()
_databases: Final[dict[str, Database]] = {}
_create_connection: Final = connections.create_connection


class Database:
    """One of Django's ``DATABASES``, whose connections are undone with the attempt.

    Give it to the middleware (``databases=[Database()]``), and use Django as ever: models, cursors,
    ``transaction.atomic()``, ``ATOMIC_REQUESTS``. A failed attempt's connections are rolled back
    and closed before any wait (G1, G8), and with Django's pool for psycopg go back to it. A
    successful attempt's are left to Django, with all that ``CONN_MAX_AGE`` says, except those that
    are in a transaction: they are rolled back and closed. A COMMIT that was sent and not answered
    makes the outcome unknown (G4), and so does a write outside of ``atomic()``, which is a commit
    of its own.

    There is one for each alias: asking again gives the same. Make it at start-up, where
    ``DJANGO_SETTINGS_MODULE`` is known.

    Args:
        alias: the key in ``DATABASES``.

    Raises:
        ValueError: there is no such database.
    """

    alias: str
    drained_at: float

    def __new__(cls, alias: str = DEFAULT_DB_ALIAS) -> Database:
        known = [
            name for name, options in connections.settings.items() if options["ENGINE"] != _DUMMY
        ]
        if alias not in known:
            raise ValueError(
                f"Database was given {alias!r}; allowed: a key of DATABASES that has an ENGINE: "
                f"{', '.join(map(repr, known)) or 'there is none'}"
            )
        with _making:
            if alias not in _databases:
                self = super().__new__(cls)
                self.alias, self.drained_at = alias, 0.0
                _databases[alias] = self
                connections.create_connection = _create_watched
                for wrapper in connections.all(initialized_only=True):  # this thread's
                    if wrapper.alias == alias:
                        Watch(self, wrapper)
            return _databases[alias]

    def __repr__(self) -> str:
        return f"Database({self.alias!r})"

    def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transactions, and close its connections, each within two seconds."""
        with ExitStack() as stack:
            for watch in _used(self, attempt):
                stack.callback(watch.roll_back)

    def release(self, attempt: Attempt) -> None:
        """Forget the attempt's connections; those left in a transaction are undone and closed."""
        with ExitStack() as stack:
            for watch in _used(self, attempt):
                stack.callback(watch.release)
        if attempt.resources is not None:
            attempt.resources.pop(self, None)

    def ping(self) -> None:
        """Connect, do a ``SELECT 1`` and disconnect; raises what Django raises."""
        wrapper = _create_connection(self.alias)
        with closing(wrapper), wrapper.cursor() as cursor:
            cursor.execute("SELECT 1" + wrapper.features.bare_select_suffix)


def _used(database: Database, attempt: Attempt) -> list[Watch]:
    return list(loan_of(database, attempt) or ())


def _create_watched(alias: str) -> Any:
    """A new ``DatabaseWrapper``, watched if somebody wants that."""
    wrapper = _create_connection(alias)
    if alias in _databases and hasattr(wrapper, "Database"):  # not where settings name no ENGINE
        Watch(_databases[alias], wrapper)
    return wrapper
