"""What is told of an exchange in which something failed: the log, and the user's hooks."""

from __future__ import annotations

from collections.abc import Iterable

from retrymw._core.exchange import Report
from retrymw.instrumentation.logging import log, log_trouble
from retrymw.typing import Hook

__all__ = ["log_trouble", "tell"]


def tell(hooks: Iterable[Hook], report: Report) -> None:
    """Log the report if its exchange is over, and show it to the hooks; none can do harm."""
    told = hooks if report.outcome is None else (log, *hooks)
    for hook in told:
        try:
            hook(report)
        except Exception:
            log_trouble("hook %r raised", hook)
