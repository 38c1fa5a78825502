"""What ``retrymw doctor`` reads of MariaDB and MySQL."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from retrymw.commands._findings import Finding, Limit, Report, Timeout

__all__ = ["examine"]

_SETTINGS: Final = ("max_connections", "max_user_connections", "wait_timeout")
_COUNTERS: Final = (
    "Threads_connected",
    "Max_used_connections",
    "Aborted_connects",
    "Connection_errors_max_connections",
    "Uptime",
)
_SYSTEM: Final = ("system user", "event_scheduler")
_PER_HOUR: Final = re.compile(r"MAX_CONNECTIONS_PER_HOUR (\d+)")


def examine(connection: Connection) -> Report:
    """Read limits and use. The account needs no privilege; with PROCESS it sees more."""
    [(version, user, us)] = _rows(connection, "SELECT VERSION(), CURRENT_USER(), CONNECTION_ID()")
    settings = _numbers(connection, "SHOW SESSION VARIABLES", _SETTINGS)
    counters = _numbers(connection, "SHOW GLOBAL STATUS", _COUNTERS)
    most = settings["max_connections"]
    name, _, host = str(user).rpartition("@")
    account = f"{_quoted(name)}@{_quoted(host)}"
    threads = [row[:2] for row in _rows(connection, "SHOW PROCESSLIST")]
    holders = Counter(str(who) for id_, who in threads if who not in _SYSTEM and id_ != us)
    ours = holders[name]
    others = max(0, counters["Threads_connected"] - ours - 1)
    limits = [
        Limit(
            "max_connections",
            most,
            others,
            ours,
            "max_connections = {0} (SET GLOBAL max_connections = {0}; and in the server's "
            "configuration, or it is gone after a restart)",
        )
    ]
    if settings["max_user_connections"]:
        how = f"ALTER USER {account} WITH MAX_USER_CONNECTIONS {{}}"
        limit = Limit("max_user_connections", settings["max_user_connections"], 0, ours, how)
        limits.append(limit)
    per_hour, unseen = _per_hour(connection)
    hidden = others - (holders.total() - ours)
    return Report(
        server=f"{'MariaDB' if 'mariadb' in str(version).lower() else 'MySQL'} {version}",
        account=account,
        facts=settings | counters,
        holders=dict(holders.most_common()),
        limits=tuple(limits),
        timeout=Timeout("wait_timeout", settings["wait_timeout"], "2006"),
        findings=(*_told(counters, most, hidden), *unseen),
        connects_per_hour=per_hour,
    )


def _told(counters: Mapping[str, int], most: int, hidden: int) -> Iterator[Finding]:
    """What the counters say, and what they don't."""
    peak, refused = counters["Max_used_connections"], counters["Connection_errors_max_connections"]
    since = f"since the server started ({timedelta(seconds=counters['Uptime'])} ago)"
    if refused and peak < most:
        yield Finding(
            "notice",
            f"{refused} connections were refused {since} because there were too many "
            "(Connection_errors_max_connections).",
            f"max_connections was lower then: it is {most}, Max_used_connections {peak}.",
        )
    elif peak >= most:
        yield Finding(
            "warning",
            f"All connections were in use at once {since}: max_connections is {most}, "
            f"Max_used_connections {peak}.",
            f"Connection_errors_max_connections counts {refused} refusals; it leaves out those "
            "that came one at a time, which are among the Aborted_connects.",
            "fewer connections in all pools together, or a higher max_connections",
        )
    if counters["Aborted_connects"]:
        yield Finding(
            "notice",
            f"{counters['Aborted_connects']} connects came to nothing {since} (Aborted_connects).",
            "Wrong passwords, clients that went away in the handshake, health checks that only "
            "open the port, and refusals because there were too many.",
        )
    if hidden > 0:
        yield Finding(
            "notice",
            f"Who has {hidden} of the connections could not be seen.",
            "The account has no PROCESS privilege.",
            "GRANT PROCESS ON *.* to it, or ask with another account",
        )


def _per_hour(connection: Connection) -> tuple[int | None, list[Finding]]:
    """How often the account may connect. What else the answer says is no business of ours."""
    try:
        [(created,)] = _rows(connection, "SHOW CREATE USER CURRENT_USER()")
    except DBAPIError:
        unseen = "Whether the account may connect only so often per hour could not be seen."
        return None, [Finding("notice", unseen, "SHOW CREATE USER was refused.")]
    found = _PER_HOUR.search(str(created))
    return (int(found[1]) or None if found else None), []


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


def _numbers(connection: Connection, show: str, names: tuple[str, ...]) -> dict[str, int]:
    listed = ", ".join(f"'{name}'" for name in names)
    rows = dict(_rows(connection, f"{show} WHERE Variable_name IN ({listed})"))
    return {name: int(rows.get(name, 0)) for name in names}


def _rows(connection: Connection, sql: str) -> list[Any]:
    return list(connection.exec_driver_sql(sql))
