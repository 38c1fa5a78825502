"""Exception handlers that make a response of a database's failure before we see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from retrymw.check._code import mentions
from retrymw.check._results import Finding
from retrymw.check._walk import Place
from retrymw.classify._frames import REGISTRY
from retrymw.exceptions import RetryableError

__all__ = ["squashed"]

# What drivers and layers call the exceptions of which some are failures; the other classes of
# PEP 249 are the app's business.
_FAILING: Final = frozenset(
    {
        "DBConnectionError",
        "InterfaceError",
        "InternalError",
        "OperationalError",
        "PostgresConnectionError",
        "TooManyConnectionsError",
        "TransactionRollbackError",
    }
)

# Adapters whose layer lets the exceptions of another package through.
_PACKAGES: Final = {
    "aiomysql": {"aiomysql", "pymysql"},
    "psycopg": {"psycopg", "psycopg_pool"},
}


def squashed(handlers: Mapping[Any, Any], place: Place) -> Iterator[Finding]:
    """A finding for each handler of a failure that no adapter of the middleware sees.

    Args:
        handlers: by exception class; a status code or ``Exception`` as key is passed over.
        place: of the app that has them.
    """
    if place.settings is None:
        return
    databases = place.settings.databases
    for cls, handler in handlers.items():
        if (
            isinstance(cls, type)
            and _may_be_a_failure(cls)
            and not any(_sees(database, cls) for database in databases)
            and not mentions(handler, "doom")
        ):
            name = f"{cls.__module__}.{cls.__qualname__}"
            yield Finding(
                "squashed",
                f"handler of {name}",
                "it makes a response of the exception before RetryMiddleware sees it, so nothing "
                "is replayed",
                "Remove the handler, add the database's adapter to databases=[…], or call "
                "current_attempt().doom(exc) in the handler",
            )


def _may_be_a_failure(cls: type) -> bool:
    if issubclass(cls, RetryableError):
        return True
    if not any(base.__module__.partition(".")[0] in REGISTRY for base in cls.__mro__):
        return False
    return any(related.__name__ in _FAILING for related in (*cls.__mro__, *_subclasses(cls)))


def _subclasses(cls: type) -> Iterator[type]:
    subclass: type
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _sees(database: Any, cls: type) -> bool:
    """Whether an adapter sees this exception; one of somebody else's is taken to."""
    package, _, leaf = type(database).__module__.rpartition(".")
    if package != "retrymw.adapters":
        return True
    packages = _PACKAGES.get(leaf, {leaf})
    return any(base.__module__.partition(".")[0] in packages for base in cls.__mro__)
