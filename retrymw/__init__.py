"""retrymw: replay the whole request when the database drops or refuses connections.

The face of the package. The middleware is in :mod:`retrymw.asgi` and :mod:`retrymw.wsgi`, and
nothing here loads either.
"""

from __future__ import annotations

from retrymw._context import Attempt, current_attempt
from retrymw._core.policy import RetryPolicy
from retrymw.exceptions import (
    DisconnectionError,
    RetryableError,
    TooManyConnections,
    TransactionConflict,
)
from retrymw.marks import idempotent, never_replay, rollback_safe

__all__ = [
    "Attempt",
    "DisconnectionError",
    "RetryPolicy",
    "RetryableError",
    "TooManyConnections",
    "TransactionConflict",
    "current_attempt",
    "idempotent",
    "never_replay",
    "rollback_safe",
]

__version__ = "0.1.0"
