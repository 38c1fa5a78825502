"""What you need to test how your own app behaves when its database goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrymw.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from retrymw.testing.conformance import AdapterConformance
    from retrymw.testing.validate import validator

__all__ = ["AdapterConformance", "FaultProxy", "validator"]


def __getattr__(name: str) -> Any:
    """What the proxy does not need: the conformance suite loads pytest, anyio and httpx."""
    if name == "AdapterConformance":
        from retrymw.testing.conformance import AdapterConformance

        return AdapterConformance
    if name == "validator":
        from retrymw.testing.validate import validator

        return validator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
