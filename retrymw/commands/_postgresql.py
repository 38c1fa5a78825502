"""What ``retrymw doctor`` reads of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection

from retrymw.commands._findings import Finding, Limit, Report, Timeout

__all__ = ["examine"]

_SETTINGS: Final = (
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
)

# Who may take what is reserved; and the limits of role and database, which superusers do not have.
_ACCOUNT: Final = """
SELECT session_user::text, current_database()::text, current_setting('server_version'),
       quote_ident(session_user), quote_ident(current_database()),
       rolsuper, rolconnlimit, datconnlimit, pg_backend_pid(),
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_use_reserved_connections'
               AND pg_has_role(session_user, oid, 'USAGE')),
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'pg_read_all_stats'
               AND pg_has_role(session_user, oid, 'USAGE'))
FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()
"""

# Without pg_read_all_stats the type of other roles' backends is hidden.
_CLIENTS: Final = """
SELECT usename::text, datname::text, count(*) FROM pg_stat_activity
WHERE usesysid IS NOT NULL AND datid IS NOT NULL AND pid <> pg_backend_pid()
AND coalesce(backend_type, 'client backend') = 'client backend' GROUP BY 1, 2 ORDER BY 3 DESC
"""


def examine(connection: Connection) -> Report:
    """Read limits and use. The account needs no privilege; with pg_monitor it sees more."""
    [account] = _rows(connection, _ACCOUNT)
    role, database, version, role_quoted, database_quoted, *account = account
    superuser, role_most, database_most, pid, reserves, sees_all = account
    settings = _settings(connection)
    clients = _rows(connection, _CLIENTS)
    holders: dict[str, int] = {}
    for who, _, number in clients:
        holders[who] = holders.get(who, 0) + number
    ours = holders.get(role, 0)
    reserved = 0 if superuser else settings["superuser_reserved_connections"]
    if not superuser and not reserves:
        reserved += settings.get("reserved_connections", 0)  # from version 16 on
    limits = [
        Limit(
            "max_connections",
            settings["max_connections"] - reserved,
            sum(holders.values()) - ours,
            ours,
            "ALTER SYSTEM SET max_connections = {}, and a restart of the server",
            reserved,
        )
    ]
    if role_most >= 0 and not superuser:
        how = f"ALTER ROLE {role_quoted} CONNECTION LIMIT {{}}"
        limits.append(Limit(f"CONNECTION LIMIT of role {role}", role_most, 0, ours, how))
    if database_most >= 0 and not superuser:
        here = {who: number for who, where, number in clients if where == database}
        limits.append(
            Limit(
                f"CONNECTION LIMIT of database {database}",
                database_most,
                sum(here.values()) - here.get(role, 0),
                here.get(role, 0),
                f"ALTER DATABASE {database_quoted} CONNECTION LIMIT {{}}",
            )
        )
    pooler = _asked_pid(connection) not in (None, pid)
    idle = settings.get("idle_session_timeout", 0) / 1000  # from version 14 on
    findings = _findings(settings, pooler=pooler, sees_all=sees_all or superuser)
    return Report(
        server=f"PostgreSQL {version}",
        account=role,
        facts=settings,
        holders=holders,
        limits=tuple(limits),
        timeout=Timeout("idle_session_timeout", idle, "57P05") if idle else None,
        findings=tuple(findings),
        pooler=pooler,
    )


def _findings(settings: dict[str, int], *, pooler: bool, sees_all: bool) -> Iterator[Finding]:
    idle = settings["idle_in_transaction_session_timeout"] / 1000
    if pooler:
        yield Finding(
            "notice",
            "There is a pooler between us and the server, PgBouncer say: the workers' connections "
            "end there, and what is read here are limits of the server behind it.",
            "The server's process is not the one that the connection was opened to.",
            "In the pooler: max_client_conn for all workers together, default_pool_size for the "
            "server; its console answers SHOW CONFIG and SHOW POOLS",
        )
    if idle:
        yield Finding(
            "notice",
            f"The server ends connections whose transaction is idle for {idle:g} s "
            "(idle_in_transaction_session_timeout).",
            "The app then meets 25P03: retrymw explain 25P03",
            "no calls to other services within a transaction",
        )
    if not sees_all:
        yield Finding(
            "notice",
            "Which connections of other roles are clients could not be seen; all were counted.",
            "The role is no member of pg_monitor.",
            "GRANT pg_monitor to it, or ask with another role",
        )


def _settings(connection: Connection) -> dict[str, int]:
    listed = ", ".join(f"'{name}'" for name in _SETTINGS)
    rows = _rows(connection, f"SELECT name, setting FROM pg_settings WHERE name IN ({listed})")  # noqa: S608  # our own names
    return {name: int(value) for name, value in rows}


def _asked_pid(connection: Connection) -> int | None:
    """The process that the driver was told of; a pooler tells one of its own making."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "get_server_pid"):  # asyncpg
        return int(driver.get_server_pid())
    return getattr(getattr(driver, "info", None), "backend_pid", None)


def _rows(connection: Connection, sql: str) -> list[Any]:
    return list(connection.exec_driver_sql(sql))
