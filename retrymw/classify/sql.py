"""A look at an SQL statement: does it commit, or leave work to be committed? In doubt it does."""

from __future__ import annotations

import re
from typing import Final

__all__ = [
    "DDL",
    "OPAQUE",
    "commits",
    "is_commit",
    "reads",
    "starts",
    "statements",
    "without_comments",
]


def starts(words: bytes) -> re.Pattern[bytes]:
    """A pattern for statements that begin with one of these words."""
    return re.compile(rb"(?:" + words + rb")\b", re.IGNORECASE)


_COMMENT: Final = re.compile(rb"--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*(?!M?!).*?\*/", re.DOTALL)
_COMMIT: Final = starts(rb"COMMIT|END|XA\s+COMMIT")
_AUTOCOMMIT_ON: Final = re.compile(
    rb"SET\b[^;]*\bAUTOCOMMIT\b(?!\s*:?=\s*(?:0|OFF|FALSE)\b)", re.IGNORECASE
)

DDL: Final = starts(
    rb"ALTER|CREATE|DROP|RENAME|TRUNCATE|GRANT|REVOKE|(?:UN)?LOCK\s+TABLES?|INSTALL|UNINSTALL|FLUSH|"
    rb"RESET|ANALYZE|OPTIMIZE|REPAIR|CHECK|CACHE"
)
"""What commits by itself in MariaDB and MySQL.

MariaDB documentation: "SQL statements that cause an implicit commit"; MySQL 8.4 manual §15.3.3.
"""

OPAQUE: Final = re.compile(
    rb"(?:CALL|EXECUTE|DO|SET\s+STATEMENT)\b|/\*M?!|[^'\"/$]*\*/", re.IGNORECASE
)
"""What may have a commit in it. The end of a comment is what nested ones leave over."""

_READ: Final = starts(
    rb"(?:\(\s*)*(?:SELECT|SHOW|SET(?!\s+STATEMENT)|USE|DESC|DESCRIBE|EXPLAIN(?![^;]{0,80}ANALY[SZ]E)|"
    rb"BEGIN|START|SAVEPOINT|RELEASE|ROLLBACK|VALUES|TABLE|FETCH|DECLARE|CLOSE|LISTEN|KILL|HELP)"
)
# A SELECT that stores its rows, or calls a function for what it does: any but those that layers
# and health checks ask for.
_MAY_WRITE: Final = re.compile(
    rb"\bINTO\b|\bFROM\s+[\w.\"`]+\s*\(|"
    rb"^[\s(]*SELECT\s+(?!(?:pg_catalog\.)?(?:version|now|current_\w+|database|schema|user|"
    rb"connection_id|last_insert_id|pg_backend_pid|pg_is_in_recovery|pg_sleep|sleep)\s*\()"
    rb"[\w.\"`]+\s*\((?!.*\bFROM\b)",
    re.IGNORECASE | re.DOTALL,
)
_LITERAL: Final = re.compile(rb"'[^'\\]*(?:\\.[^'\\]*)*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"", re.DOTALL)
_MOST_PARTS: Final = 1000


def without_comments(statement: bytes) -> bytes:
    """The statement from its first word on."""
    start = 0
    while True:
        while statement[start : start + 1].isspace():
            start += 1
        comment = _COMMENT.match(statement, start)
        if comment is None:
            return statement[start:]
        start = comment.end()


def commits(statement: object) -> bool:
    """Whether a statement is a COMMIT, or may have one in it, or one as its consequence.

    Args:
        statement: in whatever type a driver takes it: str, bytes, psycopg's ``sql`` objects, or
            the bool that its autocommit is switched to. What is none of these does not commit.
    """
    # What looks like a second statement may be part of a value: dialects differ in their quotes.
    parts = _text(statement).split(b";", _MOST_PARTS)
    return len(parts) > _MOST_PARTS or any(
        is_commit(part) or DDL.match(part) or OPAQUE.match(part)
        for part in map(without_comments, parts)
    )


def is_commit(text: bytes) -> bool:
    """Whether a statement, without comments before it, is a COMMIT and nothing else."""
    return bool(_COMMIT.match(text) or _AUTOCOMMIT_ON.match(text))


def reads(statement: object) -> bool:
    """Whether a statement leaves no work to be committed."""
    parts = _text(statement).split(b";", _MOST_PARTS)
    return len(parts) <= _MOST_PARTS and all(
        not part or (_READ.match(part) and not _MAY_WRITE.search(part))
        for part in map(without_comments, parts)
    )


def statements(text: bytes) -> list[bytes]:
    """The statements in one text, in MySQL's dialect; the first, where there is but one, as it is.

    A semicolon in a literal separates nothing: drivers write the app's values into the text.
    """
    if b";" not in text:
        return [text]
    parts = _LITERAL.sub(b"''", text).split(b";")
    return [part for part in parts if part.strip()] or [text]


def _text(statement: object) -> bytes:
    as_string = getattr(statement, "as_string", None)
    if callable(as_string):
        try:
            statement = as_string(None)
        except Exception:  # a template that can't be put together was never sent
            return b""
    if isinstance(statement, bool):
        return b"SET autocommit = %d" % statement
    if isinstance(statement, str):
        return statement.encode(errors="replace")
    return bytes(statement) if isinstance(statement, (bytes, bytearray)) else b""
