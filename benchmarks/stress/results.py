"""What was measured, cell by cell; medians, and what only the rows of one round tell together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.stress.figures import Metrics
from benchmarks.stress.rows import BY_NAME, IDEAL, Row

if TYPE_CHECKING:
    from benchmarks.stress.stage import Stage

__all__ = ["Aim", "Cell", "Column", "Scenario", "Spread", "compare", "rounds_of"]


@dataclass(frozen=True)
class Column:
    """A column of a table: the metric, its heading, and how it is written."""

    metric: str
    heading: str
    form: str = "{:.0f}"


@dataclass(frozen=True)
class Aim:
    """What a row is to reach: ``least`` or ``most`` of a metric, to that many ``digits``."""

    sentence: str
    row: Row
    metric: str
    least: float | None = None
    most: float | None = None
    digits: int = 2

    def met(self, value: float) -> bool:
        """Whether a value reaches it."""
        value = round(value, self.digits)
        enough = self.least is None or value >= self.least
        return enough and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Scenario:
    """What is done to the database, and what is measured.

    Attributes:
        name: for the command line.
        title, text: what the page says.
        rows: in the order of the table.
        columns: of the table.
        aims: of the issue.
        play: measures one row.
    """

    name: str
    title: str
    text: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    aims: Sequence[Aim]
    play: Callable[[Stage, Row], Metrics]


@dataclass
class Cell:
    """One row of one scenario in one round (from 1)."""

    scenario: str
    row: str
    round: int
    metrics: Metrics = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """The median of the rounds, and the extremes."""

    median: float
    low: float
    high: float


def compare(cells: Iterable[Cell]) -> None:
    """Add what the rows of the same round tell together.

    ``ratio`` is the throughput as a ratio to the ideal pool's; ``lead`` the product of success and
    throughput as a ratio to that of the best competitor.
    """
    cells = [cell for cell in cells if cell.metrics.get("throughput") is not None]
    for cell in cells:
        beside = [c for c in cells if (c.scenario, c.round) == (cell.scenario, cell.round)]
        ideal = [c.metrics["throughput"] for c in beside if c.row == IDEAL.name]
        if ideal and ideal[0]:
            cell.metrics["ratio"] = (cell.metrics["throughput"] or 0) / ideal[0]
        if BY_NAME[cell.row].way == "retrymw":
            others = [c for c in beside if _competes(BY_NAME[c.row])]
            best = max((_score(c) for c in others), default=0.0)
            cell.metrics["lead"] = _score(cell) / best if best else None


def _competes(row: Row) -> bool:
    return row.way != "retrymw" and not row.reference


def _score(cell: Cell) -> float:
    return (cell.metrics.get("success") or 0) / 100 * (cell.metrics["throughput"] or 0)


def rounds_of(cells: Iterable[Cell], scenario: str, row: str, metric: str) -> Spread | None:
    """The median and the extremes of a metric; None if no round has it."""
    values = [
        value
        for cell in cells
        if (cell.scenario, cell.row) == (scenario, row)
        and (value := cell.metrics.get(metric)) is not None
    ]
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values))
