"""What the codes that ``classify`` knows mean, in plain words. Which these are, its tables say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from retrymw.classify import _mysql_codes, _postgresql_texts, sqlite
from retrymw.exceptions import Kind, Phase

__all__ = ["BY_TEXT", "MEANINGS", "Meaning", "find"]


@dataclass(frozen=True)
class Meaning:
    """A code, and what ``classify`` makes of it.

    Attributes:
        code: a number, or an SQLSTATE.
        name: as the server's documentation has it.
        server: whose code it is.
        kind, phase: of the failure; the phase is None where the traceback has to tell.
        text: what it says, in plain words.
    """

    code: int | str
    name: str
    server: str
    kind: Kind
    phase: Phase | None
    text: str


def find(code: str) -> list[Meaning]:
    """What a number, an SQLSTATE or a name means; nothing if ``classify`` does not know it."""
    wanted = code.strip().upper()
    return [m for m in MEANINGS if wanted in (str(m.code), m.name.upper())]


_TEXTS: Final[dict[int | str, str]] = {
    1040: "The server has as many connections as max_connections allows.",
    1135: "The server could not start another thread for the connection: the machine is out of "
    "memory, or its limit of threads is reached.",
    1203: "The account has as many connections as max_user_connections allows.",
    1226: "The account has used up one of its limits. Only max_user_connections and "
    "max_connections_per_hour are meant here; with another one it passes untouched.",
    1053: "The server is shutting down.",
    1152: "The server ended the connection because of an error on it.",
    1158: "The server could not read from the connection.",
    1159: "The server waited too long for the client (net_read_timeout).",
    1160: "The server could not write to the connection.",
    1161: "The server waited too long for the client to read (net_write_timeout).",
    1184: "The server ended the connection because of an error on it.",
    1927: "Somebody ended the connection with KILL, or the server did, as for an idle transaction.",
    2002: "There is no server behind that socket, or address.",
    2003: "There is no server at that host and port, or none that answers.",
    2005: "The name of the server could not be looked up.",
    2006: "The connection was gone before the statement was sent: idle for longer than "
    "wait_timeout, killed, or the server restarted. So it was not carried out. A statement larger "
    "than max_allowed_packet ends like this too; one above 16 MB is not replayed.",
    2012: "The server broke the connection off during the handshake.",
    2013: "The connection broke while an answer was waited for. If that was the answer to a "
    "COMMIT, nobody knows whether it was carried out. A statement larger than max_allowed_packet "
    "ends like this too; one above 16 MB is not replayed.",
    2055: "The connection broke; the driver tells at which end. If an answer to a COMMIT was "
    "waited for, nobody knows whether it was carried out.",
    4031: "The server closed the connection because it was idle for longer than wait_timeout.",
    1020: "Another transaction changed the row since this one read it.",
    1205: "Another transaction held a lock for longer than innodb_lock_wait_timeout.",
    1213: "Two transactions waited for each other. The server undid this one.",
    1613: "The transaction took too long, and the server undid it.",
    1614: "Two transactions waited for each other. The server undid this one, a part of an XA one.",
    3058: "Two clients that use GET_LOCK() waited for each other.",
    3101: "The other members of the replication group did not agree to the commit: the server "
    "undid the transaction.",
    3572: "Another transaction holds the lock, and the statement said NOWAIT.",
    "53300": "The server, the database or the role has as many connections as it may have "
    "(max_connections less those reserved, CONNECTION LIMIT).",
    "08000": "Something is wrong with the connection.",
    "08001": "The client could not connect.",
    "08003": "The connection is not there any more.",
    "08004": "The server refused the connection.",
    "08006": "The connection broke.",
    "08007": "The connection broke during a COMMIT: nobody knows whether it was carried out.",
    "25P03": "The server ended the connection because its transaction was idle for longer than "
    "idle_in_transaction_session_timeout.",
    "40003": "Nobody knows whether the statement was carried out.",
    "57P01": "The server is shutting down, or somebody ended the connection with "
    "pg_terminate_backend().",
    "57P02": "One of the server's processes crashed, and it ended all connections to recover.",
    "57P03": "The server is starting up, shutting down or recovering.",
    "57P05": "The server ended the connection because it was idle for longer than "
    "idle_session_timeout.",
    "40001": "The transaction could not be made to look as if it ran alone. The server undid it.",
    "40P01": "Two transactions waited for each other. The server undid this one.",
    "55P03": "Another transaction holds the lock, and the statement said NOWAIT, or waited for "
    "longer than lock_timeout.",
    5: "Another connection holds the lock on the file.",
    15: "The lock on the write-ahead log could not be had: others were faster, over and over.",
    261: "Another process is recovering the write-ahead log.",
    262: "Another connection with the same shared cache holds the lock on the table.",
    517: "Another connection wrote to the file since this transaction read it.",
    773: "The lock on the file could not be had in time.",
}

MEANINGS: Final[tuple[Meaning, ...]] = (
    *(
        Meaning(number, code.name, "MariaDB, MySQL", code.kind, code.phase, _TEXTS[number])
        for number, code in _mysql_codes.CODES.items()
    ),
    *(
        Meaning(sqlstate, state.name, "PostgreSQL", state.kind, state.phase, _TEXTS[sqlstate])
        for sqlstate, state in _postgresql_texts.SQLSTATES.items()
    ),
    *(
        Meaning(number, name, "SQLite", "conflict", None, _TEXTS[number])
        for number, name in sqlite.CODES.items()
    ),
)

BY_TEXT: Final = {
    "08P01": "PgBouncer sends it with everything it says, so the message has to tell: "
    '"query_wait_timeout" and "no more connections allowed" are replayed like 53300, "server '
    'conn crashed" like 08006, a wrong password not at all.',
    "3024": "A statement took longer than max_execution_time: that passes untouched. MySQL "
    "Connector/Python gives its own timeouts the same number and closes the connection; those are "
    "replayed like 2013.",
}
"""Codes that mean one thing or the other."""
