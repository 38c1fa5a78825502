"""All scenarios, in the order of the page."""

from __future__ import annotations

from typing import Final

from benchmarks.stress.commits import COMMITS
from benchmarks.stress.outages import KILLS, OUTAGE, PAUSE, WSGI
from benchmarks.stress.results import Scenario
from benchmarks.stress.shortage import SHORTAGE, SLAP
from benchmarks.stress.waiters import WAITERS

__all__ = ["SCENARIOS"]

SCENARIOS: Final[dict[str, Scenario]] = {
    scenario.name: scenario
    for scenario in (SHORTAGE, SLAP, OUTAGE, PAUSE, KILLS, COMMITS, WAITERS, WSGI)
}
