"""The exceptions an app or an adapter raises to say: the database failed, run the request again."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

__all__ = [
    "DisconnectionError",
    "Kind",
    "Phase",
    "RetryableError",
    "TooManyConnections",
    "TransactionConflict",
]

Kind = Literal["disconnection", "too-many-connections", "conflict"]
"""What a failure is: see :class:`retrymw.DisconnectionError` and its siblings."""

Phase = Literal["connect", "execute", "commit", "unknown"]
"""Where a failure struck. ``unknown`` means it may have been the COMMIT."""


class RetryableError(Exception):
    """The base of retrymw's own exceptions; raise one of the three below it.

    Args:
        *args: as for any exception.
        phase: where it struck; ``connect`` for :class:`TooManyConnections` and ``execute`` for the
            others unless given. ``"commit"`` says that a COMMIT was sent and its answer never came,
            ``"unknown"`` that this can't be ruled out: both mean that the request is replayed only
            if it is safe or marked ``@idempotent`` (G4). When the exception is raised ``from`` a
            driver's, the driver's own evidence wins.
    """

    kind: ClassVar[Kind]
    phase: Phase = "execute"

    def __init__(self, *args: object, phase: Phase | None = None) -> None:
        super().__init__(*args)
        if phase is not None:
            if phase not in get_args(Phase):
                raise ValueError(
                    f"{type(self).__name__} was given phase={phase!r}; allowed: "
                    f"{', '.join(get_args(Phase))}"
                )
            self.phase = phase


class DisconnectionError(RetryableError):
    """The database dropped the connection, or could not be reached."""

    kind = "disconnection"


class TooManyConnections(RetryableError):
    """The server, the account or the pool had no connection left to give."""

    kind = "too-many-connections"
    phase = "connect"


class TransactionConflict(RetryableError):
    """The server undid the transaction in favour of another: deadlock, serialization, lock wait."""

    kind = "conflict"
