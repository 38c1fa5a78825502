"""2,000 requests that wait for a database that is down, beside ``/static``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from benchmarks.stress import rows
from benchmarks.stress.figures import Metrics, percentile
from benchmarks.stress.results import Aim, Column, Scenario
from benchmarks.stress.rows import Row
from benchmarks.stress.stage import Stage, sleep_until

__all__ = ["WAITERS"]

COUNT: Final = 2000
SPREAD: Final = 1.0
SETTLE: Final = 2.0
SECONDS: Final = 3.0


def play(stage: Stage, row: Row) -> Metrics:
    """Have 2,000 open connections, then as many requests that wait; what does that add?"""
    count = int(stage.seconds(COUNT))
    with ExitStack() as stack:
        app = stack.enter_context(stage.app(row, max_waiting=2 * COUNT, deadline=60.0))
        length = SETTLE + SECONDS
        path = "/products" if row.way == "retrymw" else "/wait"
        clients = stack.enter_context(
            stage.clients(
                app,
                length,
                clients=count,
                path=path,
                connected=True,
                spread=stage.seconds(SPREAD),
                probes=50,
                grace=0,
            )
        )
        stage.server.kill()
        before = app.memory()
        begun = clients.go() + stage.seconds(SETTLE)
        sleep_until(begun)
        cpu = app.cpu()
        end = begun + stage.seconds(SECONDS)
        sleep_until(end - 0.1)
        after, cpu = app.memory(), app.cpu() - cpu
        measured = clients.measured()
    probes = [probe for probe in measured.probes if begun <= probe.begun < end]
    waiting = [s for s in measured.samples if s.begun < begun and s.over >= end - 0.2]
    return {
        "waiting": len(waiting),
        "each": (after - before) / count,
        "static_p50": percentile(probes, 50),
        "static_p99": percentile(probes, 99),
        "cpu": 100 * cpu / (end - begun),
    }


_AWAITING: Final = rows.BARE

WAITERS: Final = Scenario(
    name="waiters",
    title="2,000 waiters",
    text="2,000 clients have a connection to the app. Then the database goes down, within a second "
    "each of them sends a request, and these wait (`max_waiting=4000`). *KB each* is what the "
    "app's memory has grown by for every waiter, beside that of the same requests that just await "
    "an event in the bare app: so much costs the web server's own part of a request under way.",
    rows=(_AWAITING, rows.RETRYMW, rows.ADAPTER),
    columns=(
        Column("waiting", "waiting"),
        Column("each", "KB each", "{:.1f}"),
        Column("static_p50", "/static p50 ms", "{:.1f}"),
        Column("static_p99", "/static p99 ms", "{:.1f}"),
        Column("cpu", "CPU of app", "{:.0f} %"),
    ),
    aims=(
        Aim("at most 11 KB each", rows.RETRYMW, "each", most=11, digits=1),
        Aim("`/static` p99 at most 20 ms", rows.RETRYMW, "static_p99", most=20, digits=1),
    ),
    play=play,
)
