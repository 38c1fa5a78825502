"""The drill: the same customers and the same failing database, without retrymw and with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import anyio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID

from example_app.database import open_database
from example_app.drill.faults import Faults, ServerFaults, through_proxy
from example_app.drill.load import Tally
from example_app.drill.report import SIDES, Books, broken_promises, table
from example_app.drill.side import Side
from example_app.serve import AppName
from example_app.servers import PrivateServer

__all__ = ["drill"]

SAMPLES = 10


def drill(
    app: AppName,
    url: str,
    server: PrivateServer | None,
    *,
    seconds: float,
    clients: int,
    log: str | None = None,
) -> bool:
    """Run both sides and print the table; whether retrymw kept its promises.

    Args:
        app, url: the framework and the database.
        server: the server behind ``url`` if it is ours to break.
        seconds: how long each side takes, at least.
        clients: how many customers there are at a time.
        log: where to keep the app's output, if it is to be kept.

    Raises:
        RuntimeError: the app does not start.
    """
    console = Console()
    if server is None:
        console.print(
            "This database is yours: the shop's connections to it are cut on their way, it is not "
            "restarted, and the phase in which all connections are taken is left out."
        )
    with TemporaryDirectory() as folder, _broken(url, server) as (broken_url, faults):
        side = Side(app, broken_url, faults, seconds, clients, log or f"{folder}/log")
        tallies = [Tally(), Tally()]
        anyio.run(_play, side, tallies, console)
    books = [Books.audit(tally, open_database(url)) for tally in tallies]
    console.print(table(tallies, books))
    broken = broken_promises(tallies[1], books[1])
    for promise in broken[:SAMPLES]:
        console.print(promise, style="red", markup=False)
    if broken:
        console.print(f"{len(broken)} broken promises", style="bold red")
    else:
        console.print("With retrymw no request was lost, and no order twice.", style="bold green")
    return not broken


@contextmanager
def _broken(url: str, server: PrivateServer | None) -> Iterator[tuple[str, Faults]]:
    if server is not None:
        yield url, ServerFaults(server)
    else:
        with through_proxy(url) as found:
            yield found


async def _play(side: Side, tallies: list[Tally], console: Console) -> None:
    counts = "{task.fields[answers]:5} answers, [red]{task.fields[lost]:4} lost[/red]"
    columns = ("{task.description:15}", BarColumn(), counts, "{task.fields[phase]}")
    with Progress(*columns, console=console) as progress:
        for name, tally in zip(SIDES, tallies, strict=True):
            task = progress.add_task(name, total=side.seconds, **_state(tally))
            async with (
                side.open(tally, protected=tally is tallies[1]) as load,
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(_watch, progress, task, tally)
                await side.play(load)
                tally.phase = "over"
                tasks.cancel_scope.cancel()
            progress.update(task, completed=side.seconds, **_state(tally))


async def _watch(progress: Progress, task: TaskID, tally: Tally) -> None:
    begin = anyio.current_time()
    while True:
        progress.update(task, completed=anyio.current_time() - begin, **_state(tally))
        await anyio.sleep(0.1)


def _state(tally: Tally) -> dict[str, Any]:
    answers = sum(tally.verdicts.values())
    return {"answers": answers, "lost": len(tally.lost), "phase": tally.phase}
