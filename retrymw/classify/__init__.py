"""``classify(exc)``: was that the database, and what does it mean for the request?

A classifier is a function from one exception to a failure or None. It is found by the package that
the exception's class, or one of its bases, is defined in, so no driver is imported here and a
missing one costs nothing. Drivers also let exceptions of Python's own through (OSError,
TimeoutError): those go to the classifier of the package whose code raised them, if there is one.
Adding a driver is an entry in a family's ``PACKAGES``, or ``register``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Final, get_args

from retrymw._core.failure import Failure
from retrymw.classify import layers, mysql, orms, own, postgresql, sqlite
from retrymw.classify._frames import REGISTRY, Package, dry_pool, innermost, phase_of
from retrymw.exceptions import (
    DisconnectionError,
    Phase,
    RetryableError,
    TooManyConnections,
    TransactionConflict,
)

__all__ = ["Failure", "classify", "phase_of", "register", "translate"]

for _family in (own, mysql, postgresql, sqlite, layers, orms):
    REGISTRY.update(_family.PACKAGES)

# Deep enough for any real chain, shallow enough for a malicious or cyclic one.
_MOST_LINKS: Final = 64

_TYPES: Final = {
    cls.kind: cls for cls in (DisconnectionError, TooManyConnections, TransactionConflict)
}


def classify(
    exc: BaseException,
    *,
    known: Sequence[Failure] = (),
    handling: BaseException | None = None,
) -> Failure | None:
    """What the database had to do with ``exc``; None if nothing that a replay could cure.

    The exception itself is looked at first, then the members of an exception group, a wrapper's
    ``.orig``, its cause, and its context unless that is suppressed. The first answer counts, unless
    another one, be it suppressed, says that a COMMIT may have been lost: a rollback that fails
    after that does not hide it (G4). The failure's ``exception`` is the one that answered.

    An ``OSError`` or ``TimeoutError`` is ours only if the code of a database driver raised it: an
    HTTP client's refused connection in the same endpoint is not.

    A ``BaseException`` that is no ``Exception`` (cancellation, ``SystemExit``) is never ours (G6).

    Args:
        exc: what was raised.
        known: what an adapter made of it, or of what it wraps, when that was raised: the connection
            could be asked then, and may be closed now.
        handling: what the caller was handling already when ``exc`` was raised: for an adapter,
            which judges one statement by itself, that is no part of it.
    """
    if not isinstance(exc, Exception):
        return None
    failures: list[Failure] = []
    hidden: list[Failure] = []
    links, complete = _chain(exc, handling)
    for link, suppressed in links:
        failure = _classify_alone(link)
        # A layer may answer for the driver's exception, as Storm's classifier does.
        answered = link if failure is None else failure.exception
        for earlier in known:
            if earlier.exception is link or earlier.exception is answered:
                failure = earlier
        # A layer may have answered for the driver's exception already, with a phase of its own.
        if failure is not None and all(failure.exception is not f.exception for f in failures):
            (hidden if suppressed else failures).append(failure)
    if not failures:
        return None
    lost = [failure for failure in (*failures, *hidden) if failure.leaves_commit_unknown]
    found = own.with_evidence(lost or failures)
    if not complete and found.kind == "disconnection" and not lost:
        return replace(found, phase="unknown")  # nobody has looked at the rest
    return found


def register(
    package: str,
    classifier: Callable[[BaseException], Failure | None],
    *,
    phases: Mapping[str, Phase] | None = None,
    statements: Mapping[str, str] | None = None,
) -> None:
    """Teach ``classify`` a driver or layer of your own; do it once, at start-up.

    Args:
        package: the top-level package whose exceptions, and subclasses of them, ``classifier`` is
            given, and any ``OSError`` or ``TimeoutError`` that the package's code lets through. One
            that is known already is replaced.
        classifier: from one exception to a ``Failure``, or None if it is not ours. What it wraps
            (``.orig``, cause, context) is looked at without its help. What it raises is logged,
            and counts as None.
        phases: the package's functions and methods by name, and the phase each runs in; what
            ``phase_of(exc)`` then reads off a traceback.
        statements: of those, the ones that are given SQL, and their parameter for it: a COMMIT that
            is executed as a statement is one (G4).

    Raises:
        ValueError: the package's name has a dot in it, or a phase is none.
        TypeError: the classifier can't be called.
    """
    if not package.isidentifier():
        raise ValueError(
            f"register() was given package={package!r}; it needs the name of a top-level package"
        )
    if not callable(classifier):
        raise TypeError(f"register() was given classifier={classifier!r}, which can't be called")
    for function, phase in (phases or {}).items():
        if phase not in get_args(Phase):
            raise ValueError(
                f"register() was given phases={{{function!r}: {phase!r}}}; allowed: "
                f"{', '.join(get_args(Phase))}"
            )

    REGISTRY[package] = Package(classifier, phases or {}, statements or {})
    _package_of.cache_clear()


@contextmanager
def translate() -> Iterator[None]:
    """Re-raise the database's failures as retrymw's own exceptions, for code that wants one type.

    Within the block, what ``classify`` knows becomes a ``DisconnectionError``,
    ``TooManyConnections`` or ``TransactionConflict``, raised from the original, with its phase. All
    else passes untouched, and so does what is one of these already. For async code as well.
    """
    try:
        yield
    except RetryableError:
        raise
    except Exception as exc:
        failure = classify(exc)
        if failure is None:
            raise
        raise _TYPES[failure.kind](*exc.args, phase=failure.phase) from exc


_logger = logging.getLogger("retrymw")

_TRANSPORT: Final = Package(lambda exc: None)
"""Stands for the package that is to be found by the traceback."""


def _classify_alone(exc: BaseException) -> Failure | None:
    """What one exception means, without those that it wraps."""
    package = _package_of(type(exc))  # type: ignore[arg-type]  # a class is hashable
    try:
        if package is _TRANSPORT:
            origin, function = innermost(exc)
            package = REGISTRY.get(origin)
            if isinstance(exc, RuntimeError):
                # uvloop shows no socket any more: what hangs up on a greeting is a full server.
                hung_up = package is not None and function in package.greets
                return (
                    Failure("too-many-connections", "connect", exc, driver=origin)
                    if hung_up
                    else None
                )
            if package is None and exc.__context__ is not None:
                pool = dry_pool(exc)
                if pool is not None:
                    return Failure("too-many-connections", "connect", exc, driver=pool)
        return package.classify(exc) if package is not None else None
    except Exception:  # of a registered classifier, or a property of an app's own subclass
        _logger.exception("An exception of type %s could not be classified", type(exc).__name__)
        return None


@lru_cache(maxsize=1024)
def _package_of(cls: type[BaseException]) -> Package | None:
    for base in cls.__mro__:
        package = REGISTRY.get(str(base.__module__).partition(".")[0])
        if package is not None:
            return package
    # On Python 3.10 neither asyncio's TimeoutError nor that of concurrent.futures is an OSError.
    transport = issubclass(cls, (OSError, EOFError)) or cls.__name__ == "TimeoutError"
    transport = transport or cls is RuntimeError
    return _TRANSPORT if transport else None


def _chain(
    exc: BaseException, handling: BaseException | None
) -> tuple[list[tuple[BaseException, bool]], bool]:
    """An exception and what it wraps, each with whether it is hidden; and whether that is all.

    Hidden is what ``raise ... from`` another one, or None, suppresses: a pool's timeout hides what
    the app was handling when it asked the pool.
    """
    pending = [(exc, False)]
    links: dict[int, tuple[BaseException, bool]] = {}
    while pending and len(links) < _MOST_LINKS:
        link, hidden = pending.pop(0)
        if id(link) in links:
            continue
        links[id(link)] = (link, hidden)
        members = _attribute(link, "exceptions")  # also the exceptiongroup backport's, on 3.10
        if isinstance(members, (tuple, list)):
            pending += [(member, hidden) for member in members if isinstance(member, Exception)]
        for inner in (_attribute(link, "orig"), link.__cause__):
            if isinstance(inner, BaseException):
                pending.append((inner, hidden))
        if link.__context__ is not None and link.__context__ is not handling:
            pending.append((link.__context__, hidden or link.__suppress_context__))
    return list(links.values()), not pending


def _attribute(exc: BaseException, name: str) -> object:
    try:
        return getattr(exc, name, None)
    except Exception:  # an app's own property
        return None
