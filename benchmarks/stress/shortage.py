"""200 clients and 20 connections: alone, and beside mariadb-slap."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from benchmarks.slap import slap_command
from benchmarks.stress import rows
from benchmarks.stress.figures import Metrics, latencies, percentile, share, strange, throughput
from benchmarks.stress.results import Aim, Column, Scenario
from benchmarks.stress.rows import Row
from benchmarks.stress.stage import Stage, sleep_until
from retrymw.testing.servers import MariaDB

__all__ = ["SHORTAGE", "SLAP"]

CLIENTS: Final = 200
HOLD: Final = 0.1
WARM_UP: Final = 1.5
SECONDS: Final = 5.0


def play_shortage(stage: Stage, row: Row) -> Metrics:
    """200 clients in a closed loop; every request keeps its connection for 0.1 s."""
    return _play(stage, row, slap=False)


def play_slap(stage: Stage, row: Row) -> Metrics:
    """The same, with mariadb-slap in the middle third."""
    return _play(stage, row, slap=True)


def _play(stage: Stage, row: Row, *, slap: bool) -> Metrics:
    with ExitStack() as stack:
        app = stack.enter_context(stage.app(row, hold=HOLD))
        length = WARM_UP + SECONDS
        clients = stack.enter_context(stage.clients(app, length, clients=CLIENTS, connected=True))
        begun = clients.go() + stage.seconds(WARM_UP)
        end = begun + stage.seconds(SECONDS)
        sleep_until(begun)
        refused, cpu = stage.refused(), app.cpu()
        if slap:
            sleep_until(begun + (end - begun) / 3)
            with _slap(stage.server):
                sleep_until(end - (end - begun) / 3)
        sleep_until(end)
        refused, cpu = stage.refused() - refused, app.cpu() - cpu
        measured = clients.measured()
    samples = [sample for sample in measured.samples if begun <= sample.begun < end]
    probes = [probe for probe in measured.probes if begun <= probe.begun < end]
    answered = throughput(measured.samples, begun, end)
    successes = answered * (end - begun)
    return {
        "success": share(samples),
        "throughput": answered,
        "strange": strange(measured.samples),
        "refused": refused / successes if successes and not slap else None,
        "static_p50": percentile(probes, 50),
        "static_p99": percentile(probes, 99),
        "cpu": 100 * cpu / (end - begun),
        "client_cpu": 100 * measured.cpu / (stage.seconds(WARM_UP) + end - begun),
        **latencies(samples),
    }


@contextmanager
def _slap(server: MariaDB) -> Iterator[None]:
    """200 clients of mariadb-slap that reconnect for every statement; again when it gives up."""
    command = slap_command(
        server,
        f"--query=SELECT SLEEP({HOLD})",
        f"--concurrency={CLIENTS}",
        f"--number-of-queries={CLIENTS * 100}",
        "--detach=1",
    )
    stop = threading.Event()
    running: list[subprocess.Popen[bytes]] = []

    def run() -> None:
        while not stop.is_set():
            quiet = subprocess.DEVNULL
            with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
                running[:] = [process]
                until = time.monotonic() + 1.5  # it hangs when one of its clients gives up
                while not stop.wait(0.02) and process.poll() is None and time.monotonic() < until:
                    pass
                process.kill()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
        with contextlib.suppress(IndexError):
            running[0].kill()


_COLUMNS: Final = (
    Column("success", "answered 200", "{:.1f} %"),
    Column("throughput", "successes/s"),
    Column("ratio", "ratio to ideal", "{:.2f}"),
    Column("p50", "p50 ms"),
    Column("p95", "p95 ms"),
    Column("p99", "p99 ms"),
    Column("spread", "p99/p50", "{:.2f}"),
)
_BESIDE: Final = (
    Column("static_p50", "/static p50 ms", "{:.1f}"),
    Column("static_p99", "/static p99 ms", "{:.1f}"),
    Column("cpu", "CPU of app", "{:.0f} %"),
)

SHORTAGE: Final = Scenario(
    name="shortage",
    title="Shortage",
    text="200 clients in a closed loop, and 20 connections. Every request connects, keeps its "
    "connection for 0.1 s on the server, commits and closes: 200 successes a second is what the "
    "server can do. It warms up for a second and a half, then five seconds count. *Refused* are "
    "connections that the server refused for every success. A client that gets an error waits "
    "0.5 s before it asks again. CPU is in per cent of one core.",
    rows=(
        rows.BARE,
        rows.TENACITY,
        rows.STAMINA,
        rows.HAPROXY,
        rows.NGINX,
        rows.SEMAPHORE,
        rows.SEMAPHORE_2,
        rows.BLIND,
        rows.BLIND_2,
        rows.BARE_50,
        rows.IDEAL,
        rows.RETRYMW,
        rows.RETRYMW_50,
        rows.RETRYMW_2,
        rows.RETRYMW_4,
    ),
    columns=(*_COLUMNS, Column("refused", "refused", "{:.2f}"), *_BESIDE),
    aims=(
        *(
            Aim(f"*{row.name}*: all answered 200", row, "success", least=100, digits=1)
            for row in (rows.RETRYMW, rows.RETRYMW_50, rows.RETRYMW_2, rows.RETRYMW_4)
        ),
        Aim("*retrymw*: 0.95 of the ideal pool's throughput", rows.RETRYMW, "ratio", least=0.95),
        Aim("with a pool of 50: 0.97 of it", rows.RETRYMW_50, "ratio", least=0.97),
        Aim("with two workers: 0.95 of it", rows.RETRYMW_2, "ratio", least=0.95),
        *(
            Aim(f"*{row.name}*: p99 at most 1.25 of p50", row, "spread", most=1.25)
            for row in (rows.RETRYMW, rows.RETRYMW_50, rows.RETRYMW_2)
        ),
        Aim(
            "at most 0.10 refused connections for every success", rows.RETRYMW, "refused", most=0.1
        ),
        Aim("with a pool of 50, too", rows.RETRYMW_50, "refused", most=0.1),
        Aim("with two workers at most 0.3", rows.RETRYMW_2, "refused", most=0.3),
    ),
    play=play_shortage,
)

SLAP: Final = Scenario(
    name="slap",
    title="Shortage, and mariadb-slap",
    text="The same, and in the middle third of the time that counts `mariadb-slap "
    "--concurrency=200 --detach=1` wants the same 20 connections for the same statement: the "
    "report that this project began with. It is started again whenever it gives up.",
    rows=(
        rows.BARE,
        rows.TENACITY,
        rows.STAMINA,
        rows.HAPROXY,
        rows.NGINX,
        rows.SEMAPHORE,
        rows.BLIND,
        rows.IDEAL,
        rows.RETRYMW,
        rows.RETRYMW_50,
    ),
    columns=(*_COLUMNS, *_BESIDE),
    aims=(
        Aim("all answered 200", rows.RETRYMW, "success", least=100, digits=1),
        Aim(
            "success times throughput at least that of the best competitor (the ideal pool is no "
            "competitor: it never lets a connection go)",
            rows.RETRYMW,
            "lead",
            least=1,
        ),
    ),
    play=play_slap,
)
