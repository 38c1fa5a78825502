"""``retrymw wait``: until the database lets us in."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import click
import tenacity
from sqlalchemy import URL, Connection

from retrymw.classify import Failure, classify
from retrymw.commands._database import (
    Database,
    NoEntryError,
    Seconds,
    attempt_timeout,
    database_url,
    in_words,
)
from retrymw.commands._meanings import find
from retrymw.connect import ConnectPolicy, ConnectWait, connecting
from retrymw.exceptions import DisconnectionError

__all__ = ["wait"]

_CLEAR: Final = "\r\x1b[K"
_COMMAND: Final = "retrymw.command"
_SILENT: Final = logging.NullHandler()  # each wait is told already


class _BeforeCommand(click.Command):
    """What follows ``--`` is a command, whether the URL is there or in the environment."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the command apart."""
        if "--" in args:
            end = args.index("--")
            args, ctx.meta[_COMMAND] = args[:end], args[end + 1 :]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show it."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND …]"]


@click.command("wait", cls=_BeforeCommand)
@database_url
@click.option(
    "--timeout",
    type=Seconds(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait. 0: try once.",
)
@attempt_timeout
@click.option(
    "--query",
    default="SELECT 1",
    show_default=True,
    metavar="SQL",
    help="What the database has to answer without an error.",
)
@click.option("--quiet", "-q", is_flag=True, help="Say nothing unless it goes wrong.")
@click.pass_context
def wait(
    ctx: click.Context, url: URL, timeout: float, attempt_timeout: float, query: str, quiet: bool
) -> None:
    """Wait until the database lets us in; then run COMMAND, if there is one.

    It goes on while the database can't be reached, starts up, has no connection left, or breaks
    one. It does not where waiting is no cure: a wrong password, an unknown database, a query that
    is wrong.

    URL is as SQLAlchemy spells it, mysql+pymysql://user:password@host/database say. Without it
    DATABASE_URL from the environment is taken, where no other user of the machine can read it.

    Exit status: 0 it let us in; 1 it did not in time; 2 it won't, or the command line is wrong; 130
    Ctrl-C. With COMMAND, its own; 127 if there is no such command, 126 if it can't be run.
    """
    command: list[str] | None = ctx.meta.get(_COMMAND)
    if command == []:
        raise click.UsageError("There is no command after --.", ctx)
    teller = _Teller(quiet=quiet)
    door = _Door(Database(url, attempt_timeout), query, teller)
    try:
        with _ends_at_sigterm(), teller:
            door.wait(timeout)
    except KeyboardInterrupt:
        ctx.exit(128 + signal.SIGINT)
    if command is not None:
        _become(command)


class _Door:
    """The database, at which we knock."""

    def __init__(self, database: Database, query: str, teller: _Teller) -> None:
        self._database = database
        self._query = query
        self._teller = teller
        self._attempts = 0
        self._failure: Failure | None = None

    def wait(self, timeout: float) -> None:
        """Wait ``timeout`` seconds at most.

        Raises:
            click.ClickException: it does not let us in, and why.
        """
        name, started = self._database.name, time.monotonic()
        self._teller.begin(f"attempt 1: {name}")
        logging.getLogger("retrymw").addHandler(_SILENT)
        policy = ConnectPolicy(stop=tenacity.stop_after_delay(timeout))
        try:
            connecting(self._knock, policy=policy, on_wait=self._tell)()
        except DisconnectionError:
            within = f"within {timeout:g} s ({_times(self._attempts)})"
            message = f"{name} did not let us in {within}: {self._why()}{self._more()}"
            raise NoEntryError(1, message) from None
        except Exception as exc:  # drivers raise what they like, TypeError as well
            said = f"{name}: {self._database.said(exc)}"
            cure = "Waiting is no cure for that. Look at the URL and the query."
            raise NoEntryError(2, f"{said}\n{cure}") from exc
        elapsed = time.monotonic() - started
        self._teller.end(f"{name} let us in after {elapsed:.1f} s ({_times(self._attempts)})")

    def _knock(self) -> None:
        self._attempts += 1
        try:
            self._database.run(self._ask)
        except Exception as exc:
            self._failure = classify(exc)
            if self._failure is None:
                raise
        else:
            return
        # Whatever its phase: that it struck in the query, and not in the connect, is all the same.
        raise DisconnectionError(phase="connect")

    def _ask(self, connection: Connection) -> None:
        # Without parameters a % is a %.
        connection.execution_options(no_parameters=True).exec_driver_sql(self._query)

    def _tell(self, told: ConnectWait) -> None:
        # What does not fit on the terminal's line is cut off: the least important comes last.
        self._teller.show(
            f"attempt {told.attempt}, next in {told.seconds:.1f} s, {told.left or 0:.0f} s left: "
            f"{self._why()} ({self._database.name})"
        )

    def _why(self) -> str:
        failure = self._failure
        return "" if failure is None else in_words(failure, self._database.said(failure.exception))

    def _more(self) -> str:
        code = str(self._failure and self._failure.code)
        return f"\nretrymw explain {code} says more." if find(code) else ""


class _Teller:
    """Says how it goes: on a terminal in one line, over and over, else in a line each time."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._shown = False

    def __enter__(self) -> _Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo(_CLEAR, nl=False, err=True)
            self._shown = False

    def begin(self, text: str) -> None:
        """That the first attempt is under way: on a terminal, since it may take its time."""
        if self._live:
            self.show(text)

    def show(self, text: str) -> None:
        """How far we are."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            click.echo(_CLEAR + text[:width], nl=False, err=True)
            self._shown = True
        elif not self._quiet:
            click.echo(text, err=True)

    def end(self, text: str) -> None:
        """That it is over."""
        self.__exit__()
        if not self._quiet:
            click.echo(text, err=True)


@contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """Without a handler the first process of a container is not ended by it."""

    def end(*_: Any) -> NoReturn:
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _become(command: list[str]) -> NoReturn:
    """Be the command from now on: its signals and its exit status are ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and would pass that on
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606  # the user's own command, without a shell
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise NoEntryError(127 if missing else 126, f"{command[0]}: {error.strerror}") from error


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'s' * (attempts != 1)}"
