"""What the tests of the commands share: URLs of the servers, and the commands as real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, make_url

from retrymw.testing.servers import Server

MYSQL = (
    "mysql+pymysql",
    "mysql+mysqldb",
    "mysql+mysqlconnector",
    "mysql+mariadbconnector",
    "mysql+aiomysql",
    "mysql+asyncmy",
)
POSTGRESQL = (
    "postgresql+psycopg",
    "postgresql+psycopg_async",
    "postgresql+psycopg2",
    "postgresql+asyncpg",
    "postgresql+pg8000",
)
BOUND = 30  # seconds


def url_of(server: Server, driver: str, **changes: Any) -> str:
    """The URL of the app's database, with a driver."""
    return spelled(make_url(server.url).set(drivername=driver, **changes))


def spelled(url: URL) -> str:
    """With its password."""
    return url.render_as_string(hide_password=False)


def command_line(name: str, *arguments: str) -> list[str]:
    """A command as a process of its own; a warning is an error there too."""
    code = f"from retrymw.commands.{name} import {name} as c; c(prog_name='retrymw {name}')"
    return [sys.executable, "-W", "error", "-c", code, *arguments]


@contextmanager
def started(name: str, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that is under way; what it says is piped."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command_line(name, *arguments), **(pipes | options)) as process:
        try:
            yield process
        finally:
            process.kill()


def done(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that has ended."""
    line = command_line(name, *arguments)
    return subprocess.run(
        line, capture_output=True, text=True, timeout=BOUND, check=False, **options
    )
