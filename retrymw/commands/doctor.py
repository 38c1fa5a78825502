"""``retrymw doctor``: will the connections run dry?"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import Final

import click
from sqlalchemy import URL, Connection

from retrymw.classify import Failure, classify
from retrymw.commands import _mysql, _postgresql
from retrymw.commands._database import (
    Database,
    NoEntryError,
    attempt_timeout,
    database_url,
    in_words,
)
from retrymw.commands._findings import Demand, Finding, Report, judge

__all__ = ["doctor"]

_EXAMINE: Final = {"mysql": _mysql.examine, "postgresql": _postgresql.examine}


@click.command("doctor")
@database_url
@click.option("--workers", type=click.IntRange(min=1), help="Processes that the app runs in.")
@click.option(
    "--pool-size",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Connections of the pool in each of them.",
)
@click.option(
    "--overflow",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="How many more it may open under load.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Requests that a worker handles at once."
)
@click.option(
    "--recycle",
    type=click.IntRange(min=-1),
    metavar="SECONDS",
    help="After how long the pool renews a connection; -1: never.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it for a program to read.")
@attempt_timeout
@click.pass_context
def doctor(
    ctx: click.Context,
    url: URL,
    workers: int | None,
    pool_size: int,
    overflow: int,
    threads: int | None,
    recycle: int | None,
    as_json: bool,
    attempt_timeout: float,
) -> None:
    """Examine a database: will its connections run dry, and what is to be set?

    It reads the limits of the server, of the account and of the database, and who uses how much of
    them. It changes nothing. Ask with the account that the app uses. For MariaDB, MySQL and
    PostgreSQL.

    URL is as SQLAlchemy spells it, mysql+pymysql://user:password@host/database say. Without it
    DATABASE_URL from the environment is taken, where no other user of the machine can read it.

    Exit status: 0 all is well; 1 there are warnings, or the database lets nobody in; 2 the URL
    or the password is wrong, or the command line is.
    """
    database = Database(url, attempt_timeout)
    if database.family not in _EXAMINE:
        raise click.UsageError(f"{database.name} has no limit of connections to examine.", ctx)
    demand = Demand(workers, pool_size, overflow, threads, recycle)
    report, findings = _examine(database, demand)
    if as_json:
        _print_json(database.name, report, demand, findings)
    else:
        _print(database.name, report, findings)
    ctx.exit(1 if any(finding.severity == "warning" for finding in findings) else 0)


def _examine(database: Database, demand: Demand) -> tuple[Report | None, list[Finding]]:
    """What was read, if it let us in, and what to make of it."""

    def read(connection: Connection) -> Report:
        # One statement that is refused must not spoil the next.
        connection.execution_options(isolation_level="AUTOCOMMIT", no_parameters=True)
        return _EXAMINE[database.family](connection)

    try:
        report = database.run(read)
    except Exception as exc:
        failure = classify(exc)
        if failure is None:
            said = f"{database.name}: {database.said(exc)}"
            raise NoEntryError(2, f"{said}\nLook at the URL, and at what the account may.") from exc
        return None, [_not_in(failure, database.said(failure.exception))]
    return report, judge(report, demand)


def _not_in(failure: Failure, said: str) -> Finding:
    """That we are not let in is the diagnosis, if it is a shortage."""
    what = f"The database does not let us in; it is {in_words(failure, said)}."
    if failure.kind != "too-many-connections":
        return Finding("warning", what, set="retrymw wait, if it is about to start")
    return Finding(
        "warning",
        what,
        "All connections that this account can have are taken: max_connections, or a limit of the "
        "account or the database.",
        "fewer connections in all pools together, or a higher limit. Ask again with an account "
        "for which one is reserved, to see who has them",
    )


def _print_json(name: str, report: Report | None, demand: Demand, findings: list[Finding]) -> None:
    told = {
        "url": name,
        "demand": dataclasses.asdict(demand),
        "report": dataclasses.asdict(report) if report is not None else None,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }
    click.echo(json.dumps(told, indent=2, ensure_ascii=False))


def _print(name: str, report: Report | None, findings: list[Finding]) -> None:
    click.echo(name)
    if report is not None:
        click.echo(f"{report.server}, as {report.account}\n")
        width = max(map(len, report.facts))
        for fact, value in report.facts.items():
            click.echo(f"{fact.ljust(width)}  {value}")
        holders = ", ".join(f"{who} {number}" for who, number in report.holders.items())
        click.echo(f"{'connections'.ljust(width)}  {holders or 'none'} (without this one)")
    for finding in findings:
        click.echo()
        _print_finding(finding)


def _print_finding(finding: Finding) -> None:
    color = {"warning": "red", "notice": "yellow", "ok": "green"}[finding.severity]
    click.echo(click.style(finding.severity.upper().ljust(9), fg=color), nl=False)
    parts = [finding.what, finding.why, finding.set and f"Set: {finding.set}"]
    lines = [line for part in parts if part for line in textwrap.wrap(part, width=80)]
    click.echo(f"\n{' ' * 9}".join(lines))
