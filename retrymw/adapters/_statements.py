"""What an SQL statement does to a transaction, as far as MariaDB and MySQL go.

MariaDB documentation: "SQL statements that cause an implicit commit"; MySQL 8.4 manual §15.3.3.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Transaction"]

_COMMENTS: Final = rb"\s*(?:/\*(?!!).*?\*/\s*|--\s[^\n]*\n\s*|#[^\n]*\n\s*)*"


def _starts(words: bytes) -> re.Pattern[bytes]:
    return re.compile(_COMMENTS + rb"(?:" + words + rb")\b", re.IGNORECASE | re.DOTALL)


_COMMIT: Final = _starts(rb"COMMIT|XA\s+COMMIT")
_ROLLBACK: Final = _starts(rb"ROLLBACK(?!\s+(?:WORK\s+)?TO\b)")
_BEGIN: Final = _starts(rb"BEGIN|START\s+TRANSACTION")
_HARMLESS: Final = _starts(
    rb"\(*\s*SELECT|WITH|SHOW|SET|USE|DESC|DESCRIBE|EXPLAIN|SAVEPOINT|RELEASE|ROLLBACK|VALUES|KILL|HELP"
)
_IMPLICIT_COMMIT: Final = _starts(
    rb"ALTER|CREATE|DROP|RENAME|TRUNCATE|GRANT|REVOKE|LOCK\s+TABLES?|INSTALL|UNINSTALL|FLUSH|RESET"
)


class Transaction:
    """Whether the next statement commits work, from the statements that went before it.

    Where it can't be known (``CALL``, several statements in one) the guess errs towards yes.
    """

    __slots__ = ("_explicit", "_work")

    def __init__(self) -> None:
        self._work = False
        self._explicit = False

    def commits(self, statement: bytes, *, autocommit: bool) -> bool:
        """Whether ``statement`` makes work durable when the server answers it."""
        if _COMMIT.match(statement) or _BEGIN.match(statement):
            return self._work
        if _IMPLICIT_COMMIT.match(statement):
            return True
        if _HARMLESS.match(statement):
            # SET autocommit=1 commits, and so does any other SET as far as we look into it.
            return self._work and statement.lstrip()[:3].upper() == b"SET"
        return autocommit and not self._explicit

    def answered(self, statement: bytes, *, autocommit: bool) -> None:
        """The server carried ``statement`` out."""
        if _BEGIN.match(statement):
            self._explicit, self._work = True, False
        elif (
            _COMMIT.match(statement)
            or _ROLLBACK.match(statement)
            or _IMPLICIT_COMMIT.match(statement)
        ):
            self._explicit = self._work = False
        elif not _HARMLESS.match(statement) and (self._explicit or not autocommit):
            self._work = True
