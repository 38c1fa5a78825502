"""``python -m benchmarks --help``."""

from __future__ import annotations

import click

from benchmarks.bodies import bodies
from benchmarks.overhead import overhead
from benchmarks.scripts import scripts
from benchmarks.stress.command import stress


@click.group()
def main() -> None:
    """Measurements, side by side with peers in one run."""


for command in (stress, overhead, bodies, scripts):
    main.add_command(command)

if __name__ == "__main__":
    main()
