"""What you need to test how your own app behaves when its database goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrymw.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from retrymw.testing.conformance import AdapterConformance

__all__ = ["AdapterConformance", "FaultProxy"]


def __getattr__(name: str) -> Any:
    """The conformance suite needs pytest, anyio and httpx, which the rest of this does not."""
    if name == "AdapterConformance":
        from retrymw.testing.conformance import AdapterConformance

        return AdapterConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
