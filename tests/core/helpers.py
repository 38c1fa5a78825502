"""What the tests of the core, the replies and the log share."""

from __future__ import annotations

from typing import Any, Final

from retrymw._core.exchange import Report
from retrymw._core.failure import Failure

KINDS: Final = ("disconnection", "too-many-connections", "conflict")
PHASES: Final = ("connect", "execute", "commit", "unknown")

# The words of the header Retry-Outcome, and that of an exchange whose client has gone.
OUTCOMES: Final = (
    "recovered",
    "exhausted",
    "deadline",
    "overload",
    "not-replayable",
    "committed",
    "unknown",
    "sealed",
)


def failure(kind: str = "disconnection", phase: str = "execute", **more: Any) -> Failure:
    """A failure, by default of a kind and phase that leave no doubt about a COMMIT."""
    more.setdefault("exception", ConnectionError("lost"))
    return Failure(kind, phase, **more)


def report(outcome: str | None = "recovered", *failures: Failure, **more: Any) -> Report:
    """A report of a GET: one attempt for each failure, and one more if it recovered."""
    more.setdefault("attempts", len(failures) + (outcome in ("recovered", None)))
    more.setdefault("elapsed", 0.152)
    return Report("GET", "/orders/17", failures=failures, outcome=outcome, **more)
