"""The tables, as Markdown."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from benchmarks.stress.results import Aim, Cell, Column, Scenario, Spread, rounds_of
from retrymw.testing._process import find_program

__all__ = ["machine", "render", "table"]

_INTRODUCTION = """\
# Benchmarks

An app whose database is in trouble, under load: retrymw beside what people use instead. This page
is written by `python -m benchmarks stress --write docs/reference/benchmarks.md`. All is real: a
private MariaDB server with `max_connections=20` (and `back_log=1024`: no connection is lost before
the server has seen it), the app in processes of its own, and the clients in another. The rows of a
table were measured one after the other in each round, and every round began with another row. The
figures are the medians of the rounds{rounds}.

{machine}

All rows recognise the same failures (`retrymw.classify`) and are given ten seconds; a client gives
up after thirty. Nobody logs. Endpoints are GET, or POST and `@rollback_safe`. The app is Starlette
on uvicorn (uvloop, httptools) with asyncmy, and connects for every request, where a row does not
say otherwise.
"""


def machine() -> dict[str, str]:
    """What this was measured on and with."""
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    cores = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    server = _output(find_program("mariadbd", "mariadb-server", "/usr/sbin"), "--version")
    release = re.search(r"\d+\.\d+\.\d+", server)
    packages = ("retrymw", "starlette", "uvicorn", "asyncmy", "SQLAlchemy", "Flask", "gunicorn")
    peers = ("PyMySQL", "tenacity", "stamina", "repoze.retry", "pyramid-retry", "aiohttp")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{cores} cores, {model[1] if model else platform.machine()}",
        "Python": platform.python_version(),
        "MariaDB": release[0] if release else "?",
        **{name: version(name) for name in packages + peers},
        **_fronts(),
    }


def render(
    scenarios: Sequence[Scenario], cells: Sequence[Cell], measured_on: dict[str, str]
) -> str:
    """The whole page."""
    rounds = max((cell.round for cell in cells), default=0)
    extremes = f" ({rounds}); where they differ much, the extremes follow" if rounds > 1 else ""
    told = "\n".join(f"- {name}: {value}" for name, value in list(measured_on.items())[:4])
    others = ", ".join(f"{name} {value}" for name, value in list(measured_on.items())[4:])
    introduction = _INTRODUCTION.format(rounds=extremes, machine=f"{told}\n- with {others}")
    return "\n".join(
        [
            introduction,
            *(section(scenario, cells) for scenario in scenarios),
            _rows(scenarios, cells),
        ]
    )


def section(scenario: Scenario, cells: Sequence[Cell]) -> str:
    """The heading, the text, the table and the aims of a scenario."""
    lines = [f"## {scenario.title}", "", scenario.text, "", table(scenario, cells)]
    aims = [_verdict(scenario, aim, cells) for aim in scenario.aims]
    if aims:
        lines += ["| aim | measured | |", "|---|---:|---|", *aims, ""]
    return "\n".join(lines)


def table(scenario: Scenario, cells: Sequence[Cell]) -> str:
    """The table of a scenario; its rows without figures are left out."""
    measured = {cell.row for cell in cells if cell.scenario == scenario.name}
    heads = " | ".join(column.heading for column in scenario.columns)
    lines = [f"| | {heads} |", "|---|" + "---:|" * len(scenario.columns)]
    for row in scenario.rows:
        if row.name in measured:
            figures = (
                _figure(column, rounds_of(cells, scenario.name, row.name, column.metric))
                for column in scenario.columns
            )
            lines.append(f"| {row.name} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _figure(column: Column, spread: Spread | None) -> str:
    if spread is None:
        return "-"
    text = column.form.format(spread.median)
    if spread.high - spread.low > 0.2 * abs(spread.median):
        text += f" ({_number(column, spread.low)} to {_number(column, spread.high)})"
    return text


def _number(column: Column, value: float) -> str:
    return column.form.removesuffix(" %").format(value)


def _verdict(scenario: Scenario, aim: Aim, cells: Sequence[Cell]) -> str:
    spread = rounds_of(cells, scenario.name, aim.row.name, aim.metric)
    if spread is None:
        return f"| {aim.sentence} | - | not measured |"
    verdict = "met" if aim.met(spread.median) else "**missed**"
    return f"| {aim.sentence} | {spread.median:.{aim.digits}f} | {verdict} |"


def _rows(scenarios: Sequence[Scenario], cells: Sequence[Cell]) -> str:
    measured = {cell.row for cell in cells}
    sentences = {
        row.name: row.sentence
        for scenario in scenarios
        for row in scenario.rows
        if row.name in measured
    }
    items = (f"- *{name}*: {sentence}." for name, sentence in sentences.items())
    return "\n".join(["## The rows", "", *items, ""])


def _fronts() -> dict[str, str]:
    found = {}
    for name, argument in (("haproxy", "-v"), ("nginx", "-v")):
        text = _output(find_program(name, name, "/usr/sbin"), argument)
        release = re.search(r"\d+\.\d+\.\d+", text)
        found[name] = release[0] if release else "?"
    return found


def _output(program: Path, argument: str) -> str:
    done = subprocess.run(
        [program, argument], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout
