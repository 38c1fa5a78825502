"""What came of it: a table, and what was lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import get_args

from rich.table import Column, Table

from example_app.database import Database
from example_app.drill.load import Tally, Verdict

SIDES = ("without retrymw", "with retrymw")
ORDERS = "SELECT reference FROM shop_order WHERE reference LIKE %s"


@dataclass(frozen=True)
class Books:
    """The orders of one side: what the customers have in writing, and what the database has."""

    acknowledged: int
    stored: int
    duplicates: int
    missing: int

    @classmethod
    def audit(cls, tally: Tally, database: Database) -> Books:
        """Compare the two."""
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute(ORDERS, (f"{tally.run}-%",))
            stored = Counter(reference for (reference,) in cursor.fetchall())
        return cls(
            acknowledged=len(tally.acknowledged),
            stored=len(stored),
            duplicates=sum(stored.values()) - len(stored),
            missing=len(tally.acknowledged - stored.keys()),
        )


def table(tallies: list[Tally], books: list[Books]) -> Table:
    """Both sides, next to each other."""
    result = Table("", *(Column(side, justify="right") for side in SIDES))

    def row(name: str, *values: object) -> None:
        result.add_row(name, *map(str, values))

    row("requests", *(sum(tally.verdicts.values()) for tally in tallies))
    for verdict in get_args(Verdict):
        if verdict != "other" or any(tally.verdicts[verdict] for tally in tallies):
            row(f"  {verdict}", *(tally.verdicts[verdict] for tally in tallies))
    row("replays", *(tally.replays for tally in tallies))
    row("slowest answer", *(f"{tally.slowest:.2f} s" for tally in tallies))
    result.add_section()
    row("orders acknowledged", *(book.acknowledged for book in books))
    row("orders stored", *(book.stored for book in books))
    row("  more than once", *(book.duplicates for book in books))
    row("  acknowledged, not stored", *(book.missing for book in books))
    return result


def broken_promises(tally: Tally, books: Books) -> list[str]:
    """What must not happen with retrymw, and did."""
    broken = list(tally.lost)
    if books.duplicates:
        broken.append(f"{books.duplicates} orders were stored more than once")
    if books.missing:
        broken.append(f"{books.missing} orders were acknowledged and not stored")
    return broken
