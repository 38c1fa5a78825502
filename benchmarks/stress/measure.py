"""Play the scenarios, the rows side by side in every round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from benchmarks.stress.results import Cell, Scenario, compare
from benchmarks.stress.stage import CONNECTIONS, SETTINGS, Stage
from retrymw.testing.servers import MariaDB

__all__ = ["measure"]


def measure(
    scenarios: Sequence[Scenario],
    rows: Collection[str],
    *,
    rounds: int,
    pace: float = 1.0,
    tell: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Measure all cells, and return them.

    Args:
        scenarios: what to play.
        rows: the names of the rows to measure; those that a scenario does not have are left out.
        rounds: how often; every round begins with another row.
        pace: what the lengths of all cells are multiplied with.
        tell: called with each cell as soon as it is measured.
    """
    cells = []
    with MariaDB(max_connections=CONNECTIONS, settings=SETTINGS) as server:
        stage = Stage(server, pace)
        for number in range(1, rounds + 1):
            for scenario in scenarios:
                those = [row for row in scenario.rows if row.name in rows]
                first = (number - 1) * len(those) // rounds
                for row in those[first:] + those[:first]:
                    metrics = scenario.play(stage, row)
                    cell = Cell(scenario.name, row.name, number, metrics)
                    tell(cell)
                    cells.append(cell)
    compare(cells)
    return cells
