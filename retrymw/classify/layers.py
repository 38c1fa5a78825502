"""What the layers above the drivers raise themselves; what they wrap is found behind ``.orig``."""

from __future__ import annotations

from retrymw._core.failure import Failure

__all__ = ["sqlalchemy"]


def sqlalchemy(exc: BaseException) -> Failure | None:
    """What SQLAlchemy raises over no driver's exception.

    ``TimeoutError`` is the pool's: it had no connection left. ``PendingRollbackError`` with code
    8s2b comes of a connection that was lost earlier, be it in a COMMIT.
    """
    name, module = type(exc).__name__, type(exc).__module__
    if module != "sqlalchemy.exc":
        return None
    if name == "TimeoutError":
        return Failure("too-many-connections", "connect", exc, driver="sqlalchemy")
    if name == "PendingRollbackError" and getattr(exc, "code", None) == "8s2b":
        return Failure("disconnection", "unknown", exc, "8s2b", "sqlalchemy")
    return None
