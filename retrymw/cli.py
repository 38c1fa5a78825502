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


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command with a name, None if there is none."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"retrymw.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="retrymw")
def main() -> None:
    """Replay whole requests when the database drops or refuses connections."""
