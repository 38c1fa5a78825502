"""``python -m benchmarks stress``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.stress import rows as known
from benchmarks.stress.measure import measure
from benchmarks.stress.report import machine, render, section
from benchmarks.stress.results import Cell
from benchmarks.stress.scenarios import SCENARIOS

__all__ = ["stress"]


@click.command()
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="A scenario; may be repeated."
)
@click.option("--rows", multiple=True, help="A row and its variants; may be repeated.")
@click.option(
    "--pace",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="What the lengths of all cells are multiplied with.",
)
@click.option("--write", type=click.Path(path_type=Path), help="Write the page here as well.")
@click.option("--json", "raw", type=click.Path(path_type=Path), help="Write all figures here.")
def stress(
    rounds: int,
    only: tuple[str, ...],
    rows: tuple[str, ...],
    pace: float,
    write: Path | None,
    raw: Path | None,
) -> None:
    """Measure retrymw beside what people use instead, while the database is in trouble."""
    scenarios = [SCENARIOS[name] for name in only or SCENARIOS]
    try:
        names = known.named(rows)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    measured_on = machine()
    begun = time.monotonic()

    def keep(cells: list[Cell]) -> None:
        if raw is not None:
            figures = [asdict(cell) for cell in cells]
            raw.write_text(json.dumps({"measured on": measured_on, "cells": figures}, indent=1))

    told: list[Cell] = []

    def tell(cell: Cell) -> None:
        told.append(cell)
        keep(told)
        figures = " ".join(
            f"{name}={value:.4g}" for name, value in cell.metrics.items() if value is not None
        )
        clock = time.monotonic() - begun
        click.echo(f"{clock:5.0f} s  {cell.round} {cell.scenario:<9} {cell.row:<24} {figures}")

    cells = measure(scenarios, names, rounds=rounds, pace=pace, tell=tell)
    for scenario in scenarios:
        click.echo("\n" + section(scenario, cells))
    keep(cells)
    if write is not None:
        write.write_text(render(scenarios, cells, measured_on))
