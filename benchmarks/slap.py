"""mariadb-slap, the load test of the report that this project began with."""

from __future__ import annotations

import shutil

import click

from retrymw.testing.servers import MariaDB

__all__ = ["slap_command"]


def slap_command(server: MariaDB, *options: str) -> list[str]:
    """The command that loads the app's database; it hangs when one of its clients is refused."""
    program = shutil.which("mariadb-slap") or shutil.which("mysqlslap")
    if program is None:
        raise click.UsageError("mariadb-slap is missing: apt-get install mariadb-client")
    return [
        program,
        "--no-defaults",
        f"--host={server.host}",
        f"--port={server.port}",
        f"--user={server.user}",
        f"--password={server.password}",
        f"--create-schema={server.database}",
        "--no-drop",
        *options,
    ]
