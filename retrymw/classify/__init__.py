"""``classify(exc)``: was that the database, and what does it mean for the request?

A classifier is a function from one exception to a failure or None. It is found by the package that
the exception's class, or one of its bases, is defined in, so no driver is imported here and a
missing one costs nothing. Adding a driver is an entry in ``CLASSIFIERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from retrymw._core.failure import Failure
from retrymw.classify import layers, mysql, own, postgresql

__all__ = ["classify"]

Classifier = Callable[[BaseException], Failure | None]

CLASSIFIERS: Final[dict[str, Classifier]] = {
    "retrymw": own.retrymw,
    "pymysql": mysql.pymysql,
    "MySQLdb": mysql.mysqlclient,
    "psycopg": postgresql.psycopg,
    "psycopg2": postgresql.psycopg2,
    "sqlalchemy": layers.sqlalchemy,
}

# Deep enough for any real chain, shallow enough for a malicious or cyclic one.
_MOST_LINKS: Final = 64


def classify(exc: BaseException) -> Failure | None:
    """What the database had to do with ``exc``; None if nothing that a replay could cure.

    The exception itself is looked at first, then the members of an exception group, a wrapper's
    ``.orig``, its cause, and its context unless that is suppressed. The first answer counts, unless
    another one says that a COMMIT may have been lost: a rollback that fails after that does not
    hide it (G4). The failure's ``exception`` is the one that answered.

    A ``BaseException`` that is no ``Exception`` (cancellation, ``SystemExit``) is never ours (G6).
    """
    if not isinstance(exc, Exception):
        return None
    failures = []
    for link in _chain(exc):
        classifier = _classifier_of(type(link))  # type: ignore[arg-type]  # a class is hashable
        failure = classifier(link) if classifier is not None else None
        if failure is not None:
            failures.append(failure)
    if not failures:
        return None
    lost = next((failure for failure in failures if failure.leaves_commit_unknown), None)
    return lost or own.with_evidence(failures)


@lru_cache(maxsize=1024)
def _classifier_of(cls: type[BaseException]) -> Classifier | None:
    for base in cls.__mro__:
        classifier = CLASSIFIERS.get(str(base.__module__).partition(".")[0])
        if classifier is not None:
            return classifier
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    pending = [exc]
    seen: set[int] = set()
    while pending and len(seen) < _MOST_LINKS:
        link = pending.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        members = _attribute(link, "exceptions")  # also the exceptiongroup backport's, on 3.10
        if isinstance(members, (tuple, list)):
            pending.extend(member for member in members if isinstance(member, Exception))
        context = None if link.__suppress_context__ else link.__context__
        wrapped = (_attribute(link, "orig"), link.__cause__, context)
        pending.extend(inner for inner in wrapped if isinstance(inner, BaseException))


def _attribute(exc: BaseException, name: str) -> object:
    try:
        return getattr(exc, name, None)
    except Exception:  # an app's own property
        return None
