"""What an SQL statement does to a transaction."""

from __future__ import annotations

from typing import Final

from retrymw.classify import sql

__all__ = ["Transaction"]


_ROLLBACK: Final = sql.starts(rb"ROLLBACK(?!\s+(?:WORK\s+)?TO\b)")
_BEGIN: Final = sql.starts(rb"BEGIN|START\s+TRANSACTION")
_SET: Final = sql.starts(rb"SET")


class Transaction:
    """Whether the next statement commits work, from the statements that went before it.

    Where that can't be known (``CALL``, several statements in one) it counts as a commit.

    Args:
        ddl_commits: whether ``CREATE TABLE`` and the like commit, as in MariaDB and MySQL.
    """

    __slots__ = ("_ddl_commits", "_explicit", "_work")

    def __init__(self, *, ddl_commits: bool = True) -> None:
        self._ddl_commits = ddl_commits
        self._work = False
        self._explicit = False

    def commits(self, statement: bytes, *, autocommit: bool) -> bool:
        """Whether ``statement`` makes work durable when the server answers it."""
        text, *more = sql.statements(sql.without_comments(statement))
        if more or self._may_commit(text):
            return True
        if _BEGIN.match(text) or _SET.match(text) or sql.is_commit(text):
            return self._work  # SET may be SET autocommit=1, which commits
        return autocommit and not self._explicit and not sql.reads(text)

    def answered(self, statement: bytes, *, autocommit: bool) -> None:
        """The server carried ``statement`` out."""
        for part in sql.statements(sql.without_comments(statement)):
            text = sql.without_comments(part)
            if _BEGIN.match(text):
                self._explicit, self._work = True, False
            elif _ROLLBACK.match(text) or sql.is_commit(text) or self._may_commit(text):
                self._explicit = self._work = False
            elif not sql.reads(text) and (self._explicit or not autocommit):
                self._work = True

    def refused(self, statement: bytes) -> bool:
        """Whether something may have been made durable by a ``statement`` that the server refused.

        DDL commits what went before it all the same; of several statements some were carried out.
        """
        text, *more = sql.statements(sql.without_comments(statement))
        if more or sql.OPAQUE.match(text):
            return True
        return self._work and self._may_commit(text)

    @staticmethod
    def undoes(statement: bytes) -> bool:
        """Whether ``statement`` ends the transaction without committing anything."""
        return bool(_ROLLBACK.match(sql.without_comments(statement)))

    def _may_commit(self, text: bytes) -> bool:
        ddl = self._ddl_commits and sql.DDL.match(text)
        return bool(ddl or sql.OPAQUE.match(text))
