"""The matrix of stacks and situations, what was seen in its cells, and the page made of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from tests.servers.situations.base import Situation, Verdict
from tests.servers.stacks.base import AsyncStack, Stack

# As on the page.
_STACKS: Final = (
    "mysql", "postgresql", "pgbouncer", "sqlite", "sqlalchemy", "django", "peewee", "storm",
    "tortoise", "dbutils",
)  # fmt: skip
_SITUATIONS: Final = (
    "connecting", "losing", "conflicts", "pools", "innocent", "pgbouncer", "sqlite",
)  # fmt: skip

PAGE: Final = Path("docs/reference/drivers.md")
SEEN: Final = Path(__file__).with_name("seen.json")
"""stack -> situation -> what was raised: class and code. Some races have several outcomes."""


class Cell(NamedTuple):
    """A stack in a situation."""

    stack: Stack
    situation: Situation

    @property
    def verdict(self) -> Verdict:
        """What classify has to say."""
        special = {**self.stack.differs, **self.stack.undecidable}.get(self.situation.name)
        return self.situation.verdict if special is None else special[0]

    def __str__(self) -> str:
        return f"{self.stack.name}: {self.situation.name}"


def _listed(kind: str, modules: Iterable[str], name: str) -> list:
    found = (importlib.import_module(f"tests.servers.{kind}.{module}") for module in modules)
    return list(chain.from_iterable(getattr(module, name) for module in found))


STACKS: Final[list[Stack]] = _listed("stacks", _STACKS, "STACKS")
SITUATIONS: Final[list[Situation]] = _listed("situations", _SITUATIONS, "SITUATIONS")


def cells() -> Iterator[Cell]:
    """Every cell of the matrix that can be provoked."""
    for stack in STACKS:
        for situation in SITUATIONS:
            if _applies(stack, situation) and situation.name not in stack.impossible:
                yield Cell(stack, situation)


def _applies(stack: Stack, situation: Situation) -> bool:
    if stack.server not in situation.servers:
        return False
    overridden = {
        "session": True,
        "pool": type(stack).pool is not Stack.pool,
        "collide": type(stack).collide is not Stack.collide,
    }
    if isinstance(stack, AsyncStack):
        overridden["pool"] = type(stack).open_pool is not AsyncStack.open_pool
        overridden["collide"] = type(stack).open_collision is not AsyncStack.open_collision
    return overridden[situation.needs]


class Seen:
    """What was seen in the cells, earlier and now."""

    def __init__(self) -> None:
        text = SEEN.read_text() if SEEN.exists() else "{}"
        self._cells: dict[str, dict[str, list[str]]] = json.loads(text)

    def of(self, cell: Cell) -> list[str]:
        """Everything that was ever raised in a cell."""
        return self._cells.get(cell.stack.name, {}).get(cell.situation.name, [])

    def knows(self, cell: Cell, raised: str) -> bool:
        """Whether this was raised in the cell before; a race may always have a new outcome."""
        return raised in self.of(cell) or (cell.situation.is_race and bool(self.of(cell)))

    def add(self, cell: Cell, raised: str) -> None:
        """Something was raised."""
        if raised not in self.of(cell):
            row = self._cells.setdefault(cell.stack.name, {})
            row[cell.situation.name] = sorted([*self.of(cell), raised])

    def write(self) -> None:
        """Keep it, without the cells that are gone, and make the page."""
        self._cells = {
            stack.name: {
                cell.situation.name: self.of(cell) for cell in cells() if cell.stack is stack
            }
            for stack in STACKS
        }
        SEEN.write_text(json.dumps(self._cells, indent=1) + "\n")
        PAGE.write_text(self.page())

    def page(self) -> str:
        """The reference page."""
        every = list(cells())
        undecidable = [cell for cell in every if cell.situation.name in cell.stack.undecidable]
        different = [cell for cell in every if cell.situation.name in cell.stack.differs]
        introduction = _INTRODUCTION.format(
            cells=len(every),
            stacks=len(STACKS),
            situations=len(SITUATIONS),
            right=len(every) - len(undecidable),
            undecidable=len(undecidable),
        )
        parts = [introduction, "## What can't be told apart\n"]
        parts += _reasons((cell, cell.stack.undecidable) for cell in undecidable)
        parts += ["## What is something else for some\n"]
        parts += _reasons((cell, cell.stack.differs) for cell in different)
        parts += [self._section(stack, every) for stack in STACKS]
        return "\n".join(parts)

    def _section(self, stack: Stack, every: list[Cell]) -> str:
        rows = [
            f"| {cell.situation.name} | {' or '.join(map(_code, self.of(cell)))} | "
            f"{_told(cell.verdict)}{_mark(cell)} |"
            for cell in every
            if cell.stack is stack
        ]
        missing = [
            f"- {situation.name}: {stack.impossible[situation.name]}"
            for situation in SITUATIONS
            if situation.name in stack.impossible and stack.server in situation.servers
        ]
        head = f"## {stack.name}\n\n| situation | raised | classified as |\n|---|---|---|"
        note = ["\nWhat can't happen here:\n", *missing] if missing else []
        return "\n".join([head, *rows, *note, ""])


def _reasons(found: Iterable[tuple[Cell, Mapping[str, tuple[Verdict, str]]]]) -> list[str]:
    """A table of reasons, each told once: for the stacks it is the same situations for."""
    situations: dict[tuple[str, ...], list[str]] = {}
    for cell, special in found:
        reason = special[cell.situation.name][1]
        key = (cell.stack.name, _told(cell.situation.verdict), _told(cell.verdict), reason)
        situations.setdefault(key, []).append(cell.situation.name)
    stacks: dict[tuple[str, ...], list[str]] = {}
    for (stack, *rest), names in situations.items():
        stacks.setdefault((", ".join(names), *rest), []).append(stack)
    rows = [
        f"| {names} | {', '.join(stacks)} | {usual} | {told} | {reason} |"
        for (names, usual, told, reason), stacks in stacks.items()
    ]
    return ["| situation | stack | else | classified as | why |\n|---|---|---|---|---|", *rows, ""]


def _mark(cell: Cell) -> str:
    if cell.situation.name in cell.stack.undecidable:
        return " (!)"
    return " (*)" if cell.situation.name in cell.stack.differs else ""


def _told(verdict: Verdict) -> str:
    return "not ours" if verdict is None else f"{verdict[0]}, {verdict[1]}"


def _code(raised: str) -> str:
    return f"`{raised}`" if raised != "nothing" else raised


_INTRODUCTION: Final = """\
# Drivers and layers

What drivers, layers and pools raise when something goes wrong, and what `classify` makes of it.
This page is written by the tests that provoke it all on real MariaDB, PostgreSQL, PgBouncer and
SQLite databases: {cells} cells, of {stacks} stacks (a driver alone, or under a layer) and
{situations} situations. {right} are classified as what they are; {undecidable}, marked (!), can't
be told apart from something else.

A code follows the class where the driver gives one. *Not ours* means that `classify` returns None.
What is marked (*) rightly is something else for this stack than for others.
A disconnection whose phase is `commit` or `unknown` may have lost a COMMIT: see
[G4](../explanation/guarantees.md).
"""
