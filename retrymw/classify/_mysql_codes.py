"""What MariaDB, MySQL and their drivers say, by number, and by text where there is no number.

Numbers: MariaDB's error code reference, MySQL 8.4's "Server Error Message Reference" (1xxx, 3xxx,
4xxx) and "Client Error Message Reference" (2xxx). What separates 2006 from 2013 is in the MySQL
manual's section "MySQL server has gone away": the command could not be sent, or was not answered.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from retrymw.classify._frames import Text
from retrymw.exceptions import Kind, Phase

__all__ = ["CODES", "TEXTS"]


class Code(NamedTuple):
    """What an error number means. ``phase`` is None where the traceback has to tell."""

    kind: Kind
    phase: Phase | None
    name: str


CODES: Final[dict[int, Code]] = {
    1040: Code("too-many-connections", "connect", "ER_CON_COUNT_ERROR"),
    1135: Code("too-many-connections", "connect", "ER_CANT_CREATE_THREAD"),
    1203: Code("too-many-connections", "connect", "ER_TOO_MANY_USER_CONNECTIONS"),
    1226: Code("too-many-connections", "connect", "ER_USER_LIMIT_REACHED"),
    1053: Code("disconnection", None, "ER_SERVER_SHUTDOWN"),
    1152: Code("disconnection", None, "ER_ABORTING_CONNECTION"),
    1158: Code("disconnection", None, "ER_NET_READ_ERROR"),
    1159: Code("disconnection", None, "ER_NET_READ_INTERRUPTED"),
    1160: Code("disconnection", None, "ER_NET_ERROR_ON_WRITE"),
    1161: Code("disconnection", None, "ER_NET_WRITE_INTERRUPTED"),
    1184: Code("disconnection", None, "ER_NEW_ABORTING_CONNECTION"),
    1927: Code("disconnection", None, "ER_CONNECTION_KILLED"),
    2002: Code("disconnection", "connect", "CR_CONNECTION_ERROR"),
    2003: Code("disconnection", "connect", "CR_CONN_HOST_ERROR"),
    2005: Code("disconnection", "connect", "CR_UNKNOWN_HOST"),
    2006: Code("disconnection", "execute", "CR_SERVER_GONE_ERROR"),
    2012: Code("disconnection", "connect", "CR_SERVER_HANDSHAKE_ERR"),
    2013: Code("disconnection", None, "CR_SERVER_LOST"),
    2055: Code("disconnection", None, "CR_SERVER_LOST_EXTENDED"),
    4031: Code("disconnection", "execute", "ER_CLIENT_INTERACTION_TIMEOUT"),
    1020: Code("conflict", None, "ER_CHECKREAD"),
    1205: Code("conflict", None, "ER_LOCK_WAIT_TIMEOUT"),
    1213: Code("conflict", None, "ER_LOCK_DEADLOCK"),
    1613: Code("conflict", None, "ER_XA_RBTIMEOUT"),
    1614: Code("conflict", None, "ER_XA_RBDEADLOCK"),
    3058: Code("conflict", None, "ER_USER_LOCK_DEADLOCK"),
    3101: Code("conflict", None, "ER_TRANSACTION_ROLLBACK_DURING_COMMIT"),
    3572: Code("conflict", None, "ER_LOCK_NOWAIT"),
}

TEXTS: Final[tuple[Text, ...]] = (
    Text("pool exhausted", "too-many-connections", "connect", "m.c pooling.py get_connection"),
    Text("No connection available", "too-many-connections", "connect", "mariadb connectionpool.py"),
    Text("Connection not available", "disconnection", None, "m.c connection*.py cursor, _send_cmd"),
    Text("Connection to MySQL is not available", "disconnection", None, "m.c connection*.py ping"),
    Text(
        "Unable to connect to any of the target hosts",
        "disconnection",
        "connect",
        "m.c pooling.py _get_failover_connection",
    ),
)
