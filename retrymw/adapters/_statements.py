"""What an SQL statement does to a transaction."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from retrymw.classify import sql

__all__ = ["BEGIN", "COMMIT", "DDL", "ROLL_BACK", "STAYS", "Transaction", "look"]


_ROLLBACK: Final = sql.starts(rb"ROLLBACK(?!\s+(?:WORK\s+|TRANSACTION\s+)?TO\b|\s+PREPARED)|ABORT")
_BEGIN: Final = sql.starts(rb"BEGIN|START\s+TRANSACTION")
_TWO_PHASE: Final = sql.starts(rb"PREPARE\s+TRANSACTION|COMMIT\s+PREPARED|XA")
# What a session keeps that a rollback does not undo, and that the next user would stumble over.
_STAYS: Final = re.compile(
    rb"(?:USE|LOCK\s+TABLES?|CREATE\s+(?:OR\s+REPLACE\s+)?TEMP(?:ORARY)?)\b|.*?\bGET_LOCK\s*\(",
    re.IGNORECASE | re.DOTALL,
)
_WRITE: Final = re.compile(rb"\s*(?:INSERT|UPDATE|DELETE|REPLACE)\s", re.IGNORECASE)
_REMEMBERED_BYTES: Final = 512


# What one statement does, in bits; none of them: it writes. An IntFlag takes 1 µs each time.
READ: Final = 1
BEGIN: Final = 2
ROLL_BACK: Final = 4
COMMIT: Final = 8
DDL: Final = 16
OPAQUE: Final = 32
STAYS: Final = 64

_NOTHING_ELSE: Final = (0,)


def look(statement: bytes) -> tuple[int, ...]:
    """What the statements in this text do, one after the other."""
    if b";" not in statement and b"*/" not in statement and _WRITE.match(statement):
        return _NOTHING_ELSE  # most of those that have values in them, so that each is another one
    if len(statement) > _REMEMBERED_BYTES:
        return _look(statement)
    return _remembered(statement)


def _look(statement: bytes) -> tuple[int, ...]:
    parts = sql.statements(sql.without_comments(statement))
    return tuple(_look_at(sql.without_comments(part)) for part in parts)


_remembered: Final = lru_cache(maxsize=1024)(_look)


def _look_at(text: bytes) -> int:
    does = READ if sql.reads(text) else 0
    for pattern, what in (
        (_BEGIN, BEGIN),
        (_ROLLBACK, ROLL_BACK),
        (sql.DDL, DDL),
        (sql.OPAQUE, OPAQUE),
        (_STAYS, STAYS),
        (_TWO_PHASE, OPAQUE),  # what was prepared outlives the connection, and may be another one's
    ):
        if pattern.match(text):
            does |= what
    return does | COMMIT if sql.is_commit(text) else does


class Transaction:
    """Whether the next statement commits work, from the statements that went before it.

    Where that can't be known (``CALL``, several statements in one) it counts as a commit.

    Args:
        ddl_commits: whether ``CREATE TABLE`` and the like commit, as in MariaDB and MySQL, where
            ``BEGIN`` does so too.

    Attributes:
        doubtful: a statement of this transaction was refused. PostgreSQL answers a COMMIT then with
            a rollback, and no driver raises.
    """

    __slots__ = ("_explicit", "_if_work", "_may_commit", "_work", "doubtful")

    def __init__(self, *, ddl_commits: bool = True) -> None:
        self._may_commit = OPAQUE | DDL if ddl_commits else OPAQUE
        self._if_work = BEGIN | COMMIT if ddl_commits else COMMIT
        self._explicit = self._work = self.doubtful = False

    def commits(self, statement: tuple[int, ...], *, autocommit: bool) -> bool:
        """Whether ``statement`` makes work durable when the server answers it."""
        if len(statement) > 1 or statement[0] & self._may_commit:
            return True
        if statement[0] & self._if_work:
            return self._work
        return self.is_alone(autocommit=autocommit) and not statement[0] & READ

    def answered(self, statement: tuple[int, ...], *, autocommit: bool) -> None:
        """The server carried ``statement`` out."""
        for does in statement:
            if does & BEGIN:
                self._explicit = True
                self._work = self._work and not self._if_work & BEGIN
            elif does & (ROLL_BACK | COMMIT | self._may_commit):
                self._over()
            elif not does & READ and (self._explicit or not autocommit):
                self._work = True

    def is_alone(self, *, autocommit: bool) -> bool:
        """Whether the next statement is a transaction of its own."""
        return autocommit and not self._explicit

    def failed(
        self, statement: tuple[int, ...], *, answered: bool, autocommit: bool, many: bool = False
    ) -> None:
        """``statement`` failed.

        Args:
            statement: what it does.
            answered: whether the server said so. If not, it may have been carried out.
            autocommit: whether the driver leaves committing to the server.
            many: whether it was sent several times; some of them may have been carried out.
        """
        opaque = len(statement) > 1 or statement[0] & OPAQUE
        if opaque or not (answered or statement[0] & READ):
            self._explicit, self._work = False, True  # what is left of it is not known
        elif statement[0] & (COMMIT | self._may_commit):
            self._over()
            return
        elif many:
            self.answered(statement, autocommit=autocommit)
        self.doubtful = True

    def _over(self) -> None:
        self._explicit = self._work = self.doubtful = False

    def refused(self, statement: tuple[int, ...]) -> bool:
        """Whether something may have been made durable by a ``statement`` that the server refused.

        DDL commits what went before it all the same; of several statements some were carried out.
        """
        if len(statement) > 1 or statement[0] & OPAQUE:
            return True
        return self._work and bool(statement[0] & self._may_commit)
