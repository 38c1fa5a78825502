"""retrymw's own exceptions, raised by apps and adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package
from retrymw.exceptions import RetryableError

__all__ = ["PACKAGES", "with_evidence"]


def retrymw(exc: BaseException) -> Failure | None:
    """A failure of the kind and phase that the exception says."""
    if isinstance(exc, RetryableError) and hasattr(exc, "kind"):
        return Failure(exc.kind, exc.phase, exc, driver="retrymw")
    return None


def with_evidence(failures: Sequence[Failure]) -> Failure:
    """The first of a chain's failures; if we raised it, with what the driver's told of it."""
    first = failures[0]
    if first.driver != "retrymw" or first.exception.__cause__ is None:
        return first
    for evidence in failures:
        if evidence.driver != "retrymw":
            return replace(first, phase=evidence.phase, code=evidence.code, driver=evidence.driver)
    return first


PACKAGES: Final[dict[str, Package]] = {"retrymw": Package(retrymw)}
