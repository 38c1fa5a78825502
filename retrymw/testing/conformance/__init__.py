"""The conformance suite: what every adapter must do, on a real server behind a fault proxy."""

from __future__ import annotations

import pytest

for _part in ("_accounting", "_commits", "_disconnection", "_doom", "_state", "_unit"):
    pytest.register_assert_rewrite(f"{__name__}.{_part}")  # before they are imported

# ruff: noqa: E402
from retrymw.testing.conformance._accounting import AccountingConformance, Accounts
from retrymw.testing.conformance._commits import CommitConformance
from retrymw.testing.conformance._disconnection import DisconnectionConformance
from retrymw.testing.conformance._doom import DoomConformance
from retrymw.testing.conformance._stage import Stage, Subject
from retrymw.testing.conformance._state import StateConformance
from retrymw.testing.conformance._unit import UnitOfWorkConformance

__all__ = [
    "AccountingConformance",
    "Accounts",
    "AdapterConformance",
    "Stage",
    "Subject",
    "UnitOfWorkConformance",
]


class AdapterConformance(
    StateConformance,
    DoomConformance,
    CommitConformance,
    DisconnectionConformance,
):
    """What every adapter must do (G1, G2, G3, G4, G6, G7, G8), as pytest tests.

    Subclass it for each server that the adapter speaks to, name the class ``Test…``, and give it
    two fixtures:

    - ``server``: a started :class:`~retrymw.testing.servers.MariaDB` or
      :class:`~retrymw.testing.servers.PostgreSQL`, with at least ten connections. The tests kill
      it, and start it again.
    - ``subject``: a :class:`Subject`. It connects through ``proxy.host`` and ``proxy.port``; the
      fixture ``proxy`` is the suite's. What needs an event loop to be made or closed is called by
      ``portal.call(function)``, another fixture of the suite.

    An adapter that is async has ``shells = ("asgi",)``. One with a unit of work,
    ``commit="on-success"``, inherits from :class:`UnitOfWorkConformance` as well.
    """
