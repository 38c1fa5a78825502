"""What you need to test how your own app behaves when its database goes away."""

from __future__ import annotations

from retrymw.testing.proxy import FaultProxy

__all__ = ["FaultProxy"]
