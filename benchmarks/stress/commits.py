"""COMMITs whose answer never comes: what was acknowledged beside what is stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from benchmarks.stress import rows
from benchmarks.stress.figures import Metrics, strange
from benchmarks.stress.load import Sample
from benchmarks.stress.results import Aim, Column, Scenario
from benchmarks.stress.rows import Row
from benchmarks.stress.stage import Stage, every, sleep_until

__all__ = ["COMMITS", "account"]

SECONDS: Final = 4.0
RATE: Final = 50.0
DOUBTFUL: Final = ("unknown", "committed")


def play(stage: Stage, row: Row) -> Metrics:
    """50 orders a second; four times a second the answer to a COMMIT is lost."""
    with ExitStack() as stack:
        proxy = stack.enter_context(stage.proxy())
        app = stack.enter_context(stage.app(row, port=proxy.port))
        clients = stack.enter_context(
            stage.clients(app, SECONDS, rate=RATE, method="POST", path="/orders/{}")
        )
        begun = clients.go()
        with every(0.25, lambda: proxy.cut("reset", at="commit")):
            sleep_until(begun + stage.seconds(SECONDS))
        proxy.clear()
        measured = clients.measured()
        stored = [
            number
            for (number,) in stage.server.execute(
                "SELECT number FROM orders UNION ALL SELECT number FROM orders_once"
            )
        ]
        return account(measured.samples, stored, proxy.faults)


def account(samples: Iterable[Sample], stored: Iterable[int], lost: int) -> Metrics:
    """Compare the answers with the orders that are stored.

    Args:
        samples: the requests.
        stored: the numbers of the orders, as often as they are there.
        lost: how many answers to a COMMIT were lost.
    """
    samples = list(samples)
    times = Counter(stored)
    unknown = [sample for sample in samples if sample.outcome in DOUBTFUL]
    refused = [s for s in samples if s.status != 200 and s.outcome not in DOUBTFUL]
    good = [sample for sample in samples if sample.status == 200]
    return {
        "requests": len(samples),
        "lost": lost,
        "acknowledged": len(good),
        "unknown": len(unknown),
        "strange": strange(samples),
        "duplicates": sum(count - 1 for count in times.values()),
        "missing": sum(not times[sample.number] for sample in good),
        "false": sum(bool(times[sample.number]) for sample in refused),
        "silent": lost - len(unknown),
    }


COMMITS: Final = Scenario(
    name="commit",
    title="Lost answers to COMMIT",
    text="50 orders a second, each with a number of its own. Four times a second the connection "
    "breaks after the server has carried a COMMIT out, and before its answer arrives. *Unknown* "
    "are answers that say so in `Retry-Outcome`; *missing* orders were acknowledged, and are not "
    "stored; *false* answers are errors that say nothing, and the order is stored.",
    rows=(
        rows.BARE,
        rows.TENACITY,
        rows.STAMINA,
        rows.HAPROXY,
        rows.NGINX,
        rows.REPOZE,
        rows.PYRAMID,
        rows.BLIND,
        rows.RETRYMW,
        rows.ADAPTER,
        rows.IDEMPOTENT,
        rows.WSGI_RETRYMW,
    ),
    columns=(
        Column("requests", "orders"),
        Column("lost", "lost answers"),
        Column("acknowledged", "acknowledged"),
        Column("unknown", "unknown"),
        Column("duplicates", "duplicates"),
        Column("missing", "missing"),
        Column("false", "false"),
    ),
    aims=(
        *(
            Aim(f"*{row.name}*: no {metric}", row, metric, most=0)
            for row in (rows.RETRYMW, rows.ADAPTER, rows.IDEMPOTENT, rows.WSGI_RETRYMW)
            for metric in ("duplicates", "missing", "false")
        ),
        *(
            Aim(f"*{row.name}*: every one reported unknown", row, "silent", least=0, most=0)
            for row in (rows.RETRYMW, rows.ADAPTER, rows.WSGI_RETRYMW)
        ),
        Aim("*@idempotent*: none reported unknown", rows.IDEMPOTENT, "unknown", most=0),
    ),
    play=play,
)
