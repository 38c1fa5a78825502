"""A look at an SQL statement: does it commit, or leave work to be committed?"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["commits", "reads", "statements", "without_comments"]

_COMMENT: Final = re.compile(
    rb"--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*(?!!)(?:[^*]|\*(?!/))*\*/", re.DOTALL
)
# Switching autocommit on commits in MariaDB and MySQL (MySQL manual, "Statements That Cause an
# Implicit Commit"); a COMMIT whose answer came goes before it as a rule.
_COMMIT: Final = re.compile(
    rb"(?:COMMIT|END|XA\s+COMMIT|CALL|"
    rb"SET\s+(?:SESSION\s+|@@(?:SESSION\.)?)?AUTOCOMMIT\s*:?=\s*(?:1|ON|TRUE))\b",
    re.IGNORECASE,
)
_LITERAL: Final = re.compile(rb"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_READ: Final = re.compile(
    rb"(?:\(\s*)*(?:SELECT|SHOW|SET|USE|DESC|DESCRIBE|EXPLAIN|BEGIN|START|SAVEPOINT|RELEASE|"
    rb"ROLLBACK|VALUES|TABLE|FETCH|DECLARE|CLOSE|LISTEN|KILL|HELP)\b",
    re.IGNORECASE,
)


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
    """Whether a statement is a COMMIT, has one in it, or may, as the CALL of a procedure.

    Args:
        statement: in whatever type a driver takes it: str, bytes, psycopg's ``sql`` objects, or
            the bool that its autocommit is switched to. What is none of these does not commit.
    """
    text = _text(statement)
    return any(_COMMIT.match(without_comments(statement)) for statement in statements(text))


def reads(statement: object) -> bool:
    """Whether a statement leaves no work to be committed; in doubt it does."""
    text = _text(statement)
    return all(_READ.match(without_comments(statement)) for statement in statements(text))


def statements(text: bytes) -> list[bytes]:
    """The statements in one text; the first of them, where there is but one, as it is.

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
