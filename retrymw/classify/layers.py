"""What the layers above the drivers raise themselves; what they wrap is found behind ``.orig``."""

from __future__ import annotations

from typing import Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package

__all__ = ["PACKAGES"]


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


PACKAGES: Final[dict[str, Package]] = {
    "sqlalchemy": Package(
        sqlalchemy,
        phases={
            "do_commit": "commit",
            "do_commit_twophase": "commit",
            "do_execute": "execute",
            "do_executemany": "execute",
            "do_execute_no_params": "execute",
            "do_rollback": "execute",
        },
        statements={"do_execute": "statement"},
    ),
}
