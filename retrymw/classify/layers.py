"""What the layers above the drivers raise themselves; what they wrap is found behind ``.orig``."""

from __future__ import annotations

from retrymw._core.failure import Failure

__all__ = ["sqlalchemy"]


def sqlalchemy(exc: BaseException) -> Failure | None:
    """``sqlalchemy.exc.TimeoutError``: the pool had no connection left (it is no DBAPIError)."""
    if type(exc).__name__ == "TimeoutError" and type(exc).__module__ == "sqlalchemy.exc":
        return Failure("too-many-connections", "connect", exc, driver="sqlalchemy")
    return None
