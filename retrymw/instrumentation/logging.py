"""One log record tells the story of all attempts of an exchange (G7)."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import quote

from retrymw._core.exchange import Report

__all__ = ["log", "log_trouble", "logger"]

logger: Final = logging.getLogger("retrymw")


def log(report: Report) -> None:
    """Log an exchange that has ended: WARNING if it was answered, ERROR if not.

    The record carries the report as ``record.retrymw`` and the last failure's original exception.
    """
    level = logging.WARNING if report.outcome in ("recovered", "abandoned") else logging.ERROR
    if not logger.isEnabledFor(level):
        return
    story = "; ".join(
        (f"attempt {number}" if report.attempts else "it waited its turn")
        + f": {failure.kind} in {failure.phase}"
        + (f" [{failure.driver} {failure.code}]" if failure.code is not None else "")
        + f": {failure.exception!r}"
        for number, failure in enumerate(report.failures, start=1)
    )
    if report.outcome == "overload":
        story += "; no more may wait (RetryPolicy.max_waiting), or the server shuts down"
    fence = f", fence {report.fence!r}" if report.fence is not None else ""
    logger.log(
        level,
        "%s %s: %s after %d attempt%s in %.3f s%s (%s)",
        report.method,
        quote(report.path, errors="replace"),
        report.outcome,
        report.attempts,
        "" if report.attempts == 1 else "s",
        report.elapsed,
        fence,
        story,
        exc_info=report.failures[-1].exception if report.failures else None,
        extra={"retrymw": report},
    )


def log_trouble(message: str, *args: object) -> None:
    """Log an error that must not mask the failure it came up in (G7)."""
    logger.error(message, *args, exc_info=True)
