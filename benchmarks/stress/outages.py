"""The server is killed, halted, or loses connections one by one, under an open loop of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.stress import rows
from benchmarks.stress.figures import Metrics, latencies, percentile, share, strange
from benchmarks.stress.load import Measured, Sample
from benchmarks.stress.results import Aim, Column, Scenario
from benchmarks.stress.rows import Row
from benchmarks.stress.stage import Stage, every, sleep_until

__all__ = ["KILLS", "OUTAGE", "PAUSE", "WSGI"]

RATE: Final = 50.0
BEFORE: Final = 1.0
DOWN: Final = 2.5
AFTER: Final = 1.0
START: Final = 0.15  # seconds that the server takes to start
KILLING: Final = 5.0


@dataclass
class _Outage:
    """What an outage was like: when it began and ended, connection attempts, and the requests."""

    down: float
    back: float
    attempts: int
    measured: Measured

    def met(self) -> list[Sample]:
        """The requests that met it: under way when it began, or begun before it was over."""
        return [s for s in self.measured.samples if s.begun < self.back and s.over > self.down]

    def metrics(self) -> Metrics:
        """What the tables show of it."""
        met = self.met()
        ends = [sample.over for sample in met if sample.status == 200]
        return {
            "met": len(met),
            "success": share(met),
            "strange": strange(met),
            "drained": 1000 * (max(ends) - self.back) if ends else None,
            "attempts": self.attempts / (self.back - self.down),
            "down": 1000 * (self.back - self.down),
            **latencies(met),
        }


def _outage(
    stage: Stage, row: Row, how: Literal["kill", "pause"], *, rate: float, hold: float, lead: float
) -> _Outage:
    with ExitStack() as stack:
        proxy = stack.enter_context(stage.proxy())
        app = stack.enter_context(stage.app(row, hold=hold, port=proxy.port))
        length = BEFORE + DOWN + AFTER
        clients = stack.enter_context(
            stage.clients(app, length, rate=rate, lead=stage.seconds(lead), probes=50)
        )
        begun = clients.go() + stage.seconds(lead)
        sleep_until(begun + stage.seconds(BEFORE))
        accepted, down = proxy.accepted, time.monotonic()
        end = down + stage.seconds(DOWN)
        if how == "pause":
            stage.server.pause()
            sleep_until(end)
            attempts = proxy.accepted - accepted
            stage.server.resume()
            back = time.monotonic()
        else:
            stage.server.kill()
            sleep_until(end - START)
            starting = threading.Thread(target=stage.server.start)
            starting.start()
            back = stage.wait_until_accepting(down)
            attempts = proxy.accepted - accepted
            starting.join(30)
        return _Outage(down, back, attempts, clients.measured())


def play_outage(stage: Stage, row: Row) -> Metrics:
    """SIGKILL, and a new server 2.5 s later."""
    return _outage(stage, row, "kill", rate=RATE, hold=0, lead=0).metrics()


def play_pause(stage: Stage, row: Row) -> Metrics:
    """SIGSTOP, and SIGCONT 2.5 s later."""
    return _outage(stage, row, "pause", rate=RATE, hold=0, lead=0).metrics()


def play_wsgi(stage: Stage, row: Row) -> Metrics:
    """SIGKILL under 30 requests a second, each of which keeps its connection for 50 ms."""
    outage = _outage(stage, row, "kill", rate=30, hold=0.05, lead=1.5)
    probes = outage.measured.probes
    first = min(sample.begun for sample in outage.measured.samples)
    idle = percentile([probe for probe in probes if probe.over < first], 50)
    # One that was begun in the outage counts, however long it took.
    during = [probe for probe in probes if outage.down <= probe.begun < outage.back]
    middle = percentile(during, 50)
    return {
        **outage.metrics(),
        "idle": idle,
        "static_p50": middle,
        "static_p99": percentile(during, 99),
        "times": middle / idle if middle and idle else None,
    }


def play_kills(stage: Stage, row: Row) -> Metrics:
    """A connection is killed every 0.1 s, under 100 requests a second of 0.05 s each."""
    with ExitStack() as stack:
        proxy = stack.enter_context(stage.proxy())
        app = stack.enter_context(stage.app(row, hold=0.05, port=proxy.port))
        clients = stack.enter_context(stage.clients(app, KILLING, rate=100))
        accepted = proxy.accepted
        begun = clients.go()
        kills = 0

        def kill() -> None:
            nonlocal kills
            stage.server.kill_connections(1)
            kills += 1

        with every(0.1, kill):
            sleep_until(begun + stage.seconds(KILLING))
        measured = clients.measured()
        attempts = proxy.accepted - accepted
    successes = sum(sample.status == 200 for sample in measured.samples)
    return {
        "success": share(measured.samples),
        "strange": strange(measured.samples),
        "kills": kills,
        "connections": attempts / successes if successes else None,
        **latencies(measured.samples),
    }


def _aims(*those: Row) -> Sequence[Aim]:
    return [
        aim
        for row in those
        for aim in (
            Aim(f"*{row.name}*: all answered 200", row, "success", least=100, digits=1),
            Aim(f"*{row.name}*: drained in 150 ms", row, "drained", most=150, digits=0),
            Aim(f"*{row.name}*: at most 25 attempts/s", row, "attempts", most=25, digits=0),
        )
    ]


_MET: Final = (
    Column("met", "requests"),
    Column("success", "answered 200", "{:.1f} %"),
    Column("drained", "last answered after ms"),
    Column("attempts", "attempts/s"),
    Column("p50", "p50 ms"),
    Column("p95", "p95 ms"),
)

OUTAGE: Final = Scenario(
    name="outage",
    title="Outage",
    text="50 requests arrive every second, whatever becomes of them, and read one row each. The "
    "server is killed (SIGKILL) and is back 2.5 s later. *Requests* are those that met the outage: "
    "under way when it began, or arrived before it was over. The last of them that was answered "
    "200 was so that many milliseconds after the server took connections again. *Attempts* are "
    "connections that were tried while it did not.",
    rows=(
        rows.BARE,
        rows.TENACITY,
        rows.STAMINA,
        rows.HAPROXY,
        rows.NGINX,
        rows.SEMAPHORE,
        rows.IDEAL,
        rows.BLIND,
        rows.RETRYMW,
        rows.ADAPTER,
    ),
    columns=_MET,
    aims=_aims(rows.RETRYMW, rows.ADAPTER),
    play=play_outage,
)

PAUSE: Final = Scenario(
    name="pause",
    title="Outage without a word",
    text="The same, but the server is halted (SIGSTOP) and goes on 2.5 s later (SIGCONT): "
    "connections are taken, and nobody answers. Then all that wait for a greeting get it at once.",
    rows=(rows.BARE, rows.TENACITY, rows.IDEAL, rows.BLIND, rows.RETRYMW, rows.ADAPTER),
    columns=_MET,
    aims=_aims(rows.RETRYMW, rows.ADAPTER),
    play=play_pause,
)

KILLS: Final = Scenario(
    name="kills",
    title="Rolling kills",
    text="For five seconds one connection is killed every 0.1 s, under 100 requests a second of "
    "which each keeps its connection for 0.05 s. *Connections* are those opened for every success.",
    rows=(
        rows.BARE,
        rows.TENACITY,
        rows.STAMINA,
        rows.HAPROXY,
        rows.BLIND,
        rows.RETRYMW,
        rows.ADAPTER,
    ),
    columns=(
        Column("kills", "kills"),
        Column("success", "answered 200", "{:.1f} %"),
        Column("connections", "connections", "{:.2f}"),
        Column("p50", "p50 ms"),
        Column("p99", "p99 ms"),
    ),
    aims=(Aim("all answered 200", rows.RETRYMW, "success", least=100, digits=1),),
    play=play_kills,
)

WSGI: Final = Scenario(
    name="wsgi",
    title="WSGI with eight threads",
    text="The outage again, with gunicorn (`gthread`, eight threads), PyMySQL and 30 requests a "
    "second that keep their connection for 0.05 s. `/static` needs no database, and is asked "
    "for 50 times a second, whatever becomes of it: its median during the outage beside that of "
    "the idle app, before the first request.",
    rows=(rows.WSGI_BARE, rows.REPOZE, rows.PYRAMID, rows.WSGI_BLIND, rows.WSGI_RETRYMW),
    columns=(
        *_MET[:4],
        Column("idle", "idle /static p50 ms", "{:.1f}"),
        Column("static_p50", "/static p50 ms", "{:.1f}"),
        Column("static_p99", "/static p99 ms", "{:.1f}"),
        Column("times", "p50 to idle", "{:.2f}"),
    ),
    aims=(
        Aim("`/static` p50 at most twice that of the idle app", rows.WSGI_RETRYMW, "times", most=2),
    ),
    play=play_wsgi,
)
