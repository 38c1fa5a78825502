"""retrymw's own exceptions, raised by apps and adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retrymw._core.failure import Failure
from retrymw.exceptions import RetryableError

__all__ = ["retrymw", "with_evidence"]


def retrymw(exc: BaseException) -> Failure | None:
    """A failure of the kind and phase that the exception says."""
    if isinstance(exc, RetryableError) and hasattr(exc, "kind"):
        return Failure(exc.kind, exc.phase, exc, driver="retrymw")
    return None


def with_evidence(failure: Failure, classify: Callable[[BaseException], Failure | None]) -> Failure:
    """The phase and code from the driver's exception that one of ours was raised from."""
    if failure.driver != "retrymw" or failure.exception.__cause__ is None:
        return failure
    evidence = classify(failure.exception.__cause__)
    if evidence is None:
        return failure
    return replace(failure, phase=evidence.phase, code=evidence.code, driver=evidence.driver)
