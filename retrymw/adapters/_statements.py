"""What an SQL statement does to a transaction, as far as MariaDB and MySQL go."""

from __future__ import annotations

import re
from typing import Final

from retrymw.classify import sql

__all__ = ["Transaction"]


def _starts(words: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:" + words + rb")\b", re.IGNORECASE)


_ROLLBACK: Final = _starts(rb"ROLLBACK(?!\s+(?:WORK\s+)?TO\b)")
_BEGIN: Final = _starts(rb"BEGIN|START\s+TRANSACTION")
_SET: Final = _starts(rb"SET")


class Transaction:
    """Whether the next statement commits work, from the statements that went before it.

    Where that can't be known (``CALL``, several statements in one) it counts as a commit.
    """

    __slots__ = ("_explicit", "_work")

    def __init__(self) -> None:
        self._work = False
        self._explicit = False

    def commits(self, statement: bytes, *, autocommit: bool) -> bool:
        """Whether ``statement`` makes work durable when the server answers it."""
        text = sql.without_comments(statement)
        parts = sql.statements(text)
        if sql.IMPLICIT_COMMIT.match(text) or len(parts) > 1:
            return True
        if _BEGIN.match(text) or _SET.match(text) or sql.commits(parts[0]):
            return self._work  # SET may be SET autocommit=1, which commits
        return autocommit and not self._explicit and not sql.reads(parts[0])

    def answered(self, statement: bytes, *, autocommit: bool) -> None:
        """The server carried ``statement`` out."""
        text = sql.without_comments(statement)
        if _BEGIN.match(text):
            self._explicit, self._work = True, False
            return
        for part in sql.statements(text):
            if _ROLLBACK.match(part) or sql.commits(part):
                self._explicit = self._work = False
            elif not sql.reads(part) and (self._explicit or not autocommit):
                self._work = True
