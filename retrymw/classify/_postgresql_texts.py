"""SQLSTATEs, and what PostgreSQL, PgBouncer and libpq say where there is none."""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from retrymw.classify._frames import Text
from retrymw.exceptions import Kind, Phase

__all__ = ["DENIED", "SERVER", "SQLSTATES", "TRANSLATED", "TRANSPORT", "meaning_of"]


class State(NamedTuple):
    """What an SQLSTATE means. ``phase`` is None where the traceback has to tell."""

    kind: Kind
    phase: Phase | None
    name: str


SQLSTATES: Final[dict[str, State]] = {
    "53300": State("too-many-connections", "connect", "too_many_connections"),
    "08000": State("disconnection", None, "connection_exception"),
    "08001": State("disconnection", "connect", "sqlclient_unable_to_establish_sqlconnection"),
    "08003": State("disconnection", None, "connection_does_not_exist"),
    "08004": State("disconnection", "connect", "sqlserver_rejected_establishment_of_sqlconnection"),
    "08006": State("disconnection", None, "connection_failure"),
    "08007": State("disconnection", "commit", "transaction_resolution_unknown"),
    "25P03": State("disconnection", "execute", "idle_in_transaction_session_timeout"),
    "40003": State("disconnection", "commit", "statement_completion_unknown"),
    "57P01": State("disconnection", None, "admin_shutdown"),
    "57P02": State("disconnection", None, "crash_shutdown"),
    "57P03": State("disconnection", "connect", "cannot_connect_now"),
    "57P05": State("disconnection", "execute", "idle_session_timeout"),
    "40001": State("conflict", None, "serialization_failure"),
    "40P01": State("conflict", None, "deadlock_detected"),
    "55P03": State("conflict", None, "lock_not_available"),
}


DENIED: Final = {
    "authentication failed": "auth.c auth_failed; PgBouncer client.c",
    "no pg_hba.conf entry": "auth.c ClientAuthentication",
    '" does not exist': "postinit.c InitPostgres, miscinit.c InitializeSessionUserId",
    "no such database": "PgBouncer client.c set_pool",
    "no such user": "PgBouncer client.c set_pool",
    '" is disabled': "PgBouncer client.c set_pool",
    "does not allow connections": "PgBouncer client.c set_pool",
    "bouncer config error": "PgBouncer client.c set_pool",
    "query timeout": "PgBouncer janitor.c pool_server_maint",
    "query_timeout": "PgBouncer janitor.c pool_client_maint",
}
"""No for good: the server, or PgBouncer, was reached, and the same would come of it again."""

SERVER: Final = (
    Text("too many clients already", "too-many-connections", "connect", "proc.c InitProcess"),
    Text("remaining connection slots", "too-many-connections", "connect", "postinit.c"),
    Text("too many connections for", "too-many-connections", "connect", "postinit.c, miscinit.c"),
    Text("the database system is ", "disconnection", "connect", "postmaster.c"),
    Text("terminating connection", "disconnection", None, "postgres.c ProcessInterrupts"),
    Text("no more connections allowed", "too-many-connections", "connect", "PgBouncer client.c"),
    Text("client connections exceeded", "too-many-connections", "connect", "PgBouncer client.c"),
    Text("query_wait_timeout", "too-many-connections", "connect", "PgBouncer janitor.c"),
    Text("server login has been failing", "disconnection", "connect", "PgBouncer objects.c"),
    Text("client_login_timeout", "disconnection", "connect", "PgBouncer janitor.c"),
    Text("client_idle_timeout", "disconnection", "execute", "PgBouncer janitor.c"),
    Text("idle transaction timeout", "disconnection", "execute", "PgBouncer janitor.c"),
    Text("server conn crashed", "disconnection", None, "PgBouncer server.c"),
    Text("database removed", "disconnection", None, "PgBouncer objects.c kill_database"),
    Text("pooler is shutting down", "disconnection", None, "PgBouncer janitor.c"),
)
"""What a server answers to a connect, and PgBouncer at any time.

psycopg and psycopg2 keep no SQLSTATE of the one, and the other gives all of them the same.
"""

TRANSPORT: Final = (
    Text("could not translate host name", "disconnection", "connect", "fe-connect.c"),
    Text("failed to resolve host", "disconnection", "connect", "psycopg _conninfo_attempts.py"),
    Text("timeout expired", "disconnection", "connect", "fe-connect.c; psycopg generators.py"),
    Text("server closed the connection", "disconnection", None, "fe-misc.c pqReadData"),
    Text("could not receive data from server", "disconnection", None, "fe-secure.c"),
    Text("could not send data to server", "disconnection", None, "fe-secure.c"),
    Text("could not send startup packet", "disconnection", "connect", "fe-connect.c"),
    Text("SSL SYSCALL error", "disconnection", None, "fe-secure-openssl.c"),
    Text("SSL connection has been closed", "disconnection", None, "fe-secure-openssl.c"),
    Text("no connection to the server", "disconnection", "execute", "fe-exec.c PQsendQueryStart"),
    Text("connection socket closed", "disconnection", None, "psycopg waiting.py"),
    Text("the connection is lost", "disconnection", None, "psycopg generators.py"),
    Text("the connection is closed", "disconnection", "execute", "psycopg _connection_base.py"),
    Text("connection already closed", "disconnection", "execute", "psycopg2 connection.h"),
)
"""What libpq and the drivers above it say of a connection that is not there."""

ERRNOS: Final[dict[int, Phase | None]] = {
    errno.ECONNREFUSED: "connect",
    errno.EHOSTUNREACH: "connect",
    errno.ENETUNREACH: "connect",
    errno.ENOENT: "connect",  # the socket
    errno.ECONNRESET: None,
    errno.EPIPE: None,
    errno.ETIMEDOUT: None,
}
"""What libpq says in the words of strerror(), which speaks the language of the process."""


def _translated(
    language: str, *, full: tuple[str, ...], gone: tuple[str, ...], ended: tuple[str, ...]
) -> list[Text]:
    source = f"PostgreSQL 15, src/backend/po/{language}.po"
    return [
        *(Text(fragment, "too-many-connections", "connect", source) for fragment in full),
        *(Text(fragment, "disconnection", "connect", source) for fragment in gone),
        *(Text(fragment, "disconnection", None, source) for fragment in ended),
    ]


TRANSLATED: Final[tuple[Text, ...]] = (
    *_translated(
        "de",
        full=("zu viele Verbindungen", "die verbleibenden Verbindungen sind"),
        gone=("das Datenbanksystem ",),
        ended=("Verbindung wird abgebrochen",),
    ),
    *_translated(
        "es",
        full=(
            "ya tenemos demasiados clientes",
            "demasiadas conexiones para",
            "conexiones restantes",
        ),
        gone=("el sistema de base",),
        ended=("terminando la conexión",),
    ),
    *_translated(
        "fr",
        full=("trop de clients sont", "trop de connexions pour", "les emplacements de connexions"),
        gone=("le système de base",),
        ended=("arrêt des connexions", "arrêt de la connexion"),
    ),
    *_translated(
        "it",
        full=("troppi client già connessi", "troppe connessioni", "i rimanenti slot di conn"),
        gone=("il database si sta", "il sistema di database non", "il database è in modalità"),
        ended=("interruzione della connessione", "la connessione è stata terminata"),
    ),
    *_translated(
        "ja",
        full=("クライアント数が多すぎます", "接続が多すぎます", "残りの接続"),
        gone=("データベースシステムは",),
        ended=("接続を終了",),
    ),
    *_translated(
        "ka",
        full=("უკვე მეტისმეტად ბევრი კლიენტია", "ბევრი კავშირი"),
        gone=("მონაცემთა ბაზის სისტემ",),
        ended=("მიერთების შეწყვეტა",),
    ),
    *_translated(
        "ko",
        full=("접속자 수를 초과했습니다", "접속수를 초과했습니다", "남은 연결 슬롯은"),
        gone=("데이터베이스 시스템",),
        ended=("연결을 끝냅니다", "연결을 중지"),
    ),
    *_translated(
        "ru",
        full=("слишком много клиентов", "слишком много подключений", "оставшиеся слоты"),
        gone=("система баз данных ", "система БД "),
        ended=("закрытие подключения",),
    ),
    *_translated(
        "sv",
        full=("för många klienter", "för många uppkopplingar", "resterande anslutningsslottar"),
        gone=("databassystemet ",),
        ended=("avslutar anslutning", "avbryter anslutning"),
    ),
    *_translated(
        "uk",
        full=("забагато клієнтів", "занадто багато підключень", "слоти підключень, які залишились"),
        gone=("система бази даних ",),
        ended=("завершення підключення",),
    ),
    *_translated(
        "zh_CN",
        full=("已经有太多的客户", "连接太多了", "已保留的连接位置"),
        gone=("数据库系统",),
        ended=("中断联接",),
    ),
)
"""What `SERVER` has of PostgreSQL, as it says it under another ``lc_messages``."""


def meaning_of(message: str, *, connecting: bool, broken: bool) -> Text | None:
    """What a message means; None if it is not ours.

    Args:
        message: what was said, by whomever.
        connecting: whether it was said to a connect.
        broken: whether the driver itself counts the connection as lost.
    """
    denied = any(fragment in message for fragment in DENIED)
    for text in (*SERVER, *TRANSLATED):
        if text.fragment in message and not (denied and text.kind == "disconnection"):
            return text
    # A server that answered is not out of reach, though another one of its addresses may be.
    if denied or (connecting and _ANSWER in message):
        return None
    for text in TRANSPORT:
        if text.fragment in message:
            return text
    for number, phase in ERRNOS.items():
        if os.strerror(number) in message and (number != errno.ENOENT or _SOCKET in message):
            return Text("", "disconnection", phase, "strerror()")
    return _BROKEN if broken else None


# Between severity and message, in every language: fe-protocol3.c pqBuildErrorMessage3.
_ANSWER: Final = ":  "

_SOCKET: Final = ".s.PGSQL."
_BROKEN: Final = Text("", "disconnection", None, "the driver's own mark")
