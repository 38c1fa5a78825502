"""The command ``retrymw``. It needs click: ``pip install 'retrymw[cli]'``."""

from __future__ import annotations

import importlib
import sys
from typing import Final

try:
    import click
except ModuleNotFoundError as error:
    if error.name != "click":
        raise
    sys.stderr.write("the command retrymw needs click: pip install 'retrymw[cli]'\n")
    raise SystemExit(2) from None

__all__ = ["main"]

# Each is a function in a module of its own, which is imported when it is asked for.
_COMMANDS: Final = ("check", "doctor", "explain", "wait")


class _Unusable(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say why."""
        raise click.UsageError(f"{self.help}.")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with a name, None if there is none."""
        if cmd_name not in _COMMANDS:
            return None
        try:
            module = importlib.import_module(f"retrymw.commands.{cmd_name}")
        except ImportError as error:  # click comes with many frameworks, SQLAlchemy 2 with few
            if str(error.name).partition(".")[0] != "sqlalchemy":
                raise
            return _Unusable(cmd_name, help="Needs SQLAlchemy 2: pip install 'retrymw[cli]'")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retrymw")
def main() -> None:
    """Replay whole requests when the database drops or refuses connections."""
