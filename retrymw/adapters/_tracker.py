"""What goes on on a connection, told to the attempt that it is on loan to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from retrymw._context import Attempt
from retrymw.adapters._statements import COMMIT, ROLL_BACK, Transaction, look

__all__ = ["Tracker"]


class Tracker:
    """Tells an attempt of the failures and commits on one connection.

    An adapter keeps one with each connection, wraps all that is sent in :meth:`sending`, and sets
    ``attempt`` while the connection is on loan.

    Once a statement has failed with a failure of ours, those that follow raise the same exception
    until the transaction is rolled back: half a transaction never goes on by itself, whatever the
    app swallowed. Under autocommit there is no such half, unless the connection was lost.

    Args:
        errors: what the driver raises when the server refuses a statement. Any other exception that
            is no failure leaves it open whether the answer was read.
        ddl_commits: whether ``CREATE TABLE`` and the like commit, as in MariaDB and MySQL.

    Attributes:
        attempt: who is told; None outside of attempts, where nothing is tracked.
        lost: the connection can't be used any more, or what comes next over it can't be known.
        busy: how many statements wait for their answer.
        failed: what every statement raises until a rollback, if the transaction has failed.
    """

    __slots__ = ("_ddl_commits", "_errors", "_transaction", "attempt", "busy", "failed", "lost")

    def __init__(
        self, errors: type[Exception] | tuple[type[Exception], ...], *, ddl_commits: bool
    ) -> None:
        self._errors = errors
        self._ddl_commits = ddl_commits
        self.busy = 0
        self.lost = False
        self.lend(None)

    def lend(self, attempt: Attempt | None) -> None:
        """From here on the connection, in no transaction, is that attempt's, or nobody's."""
        self.attempt = attempt
        self.failed: Exception | None = None
        self._transaction = Transaction(ddl_commits=self._ddl_commits)

    @contextmanager
    def sending(self, statement: bytes, *, autocommit: bool, many: bool = False) -> Iterator[None]:
        """Around what sends ``statement`` and reads its answer, be it awaited or not.

        Args:
            statement: the SQL; ``b"COMMIT"`` for what is sent in another way.
            autocommit: whether the driver leaves committing to the server.
            many: whether it is sent several times, as by ``executemany``.

        Raises:
            Exception: the failure that doomed the transaction.
        """
        attempt, transaction = self.attempt, self._transaction
        if attempt is None:
            yield
            return
        what = look(statement)
        undoes = what[0] & ROLL_BACK
        if self.failed is not None and not undoes:
            raise self.failed
        commits = transaction.commits(what, autocommit=autocommit)
        if commits:
            attempt.commit_sent()
        self.busy += 1
        try:
            yield
        except BaseException as exc:
            alone = transaction.is_alone(autocommit=autocommit)
            if not self._is_answer(attempt, exc, commits=commits, alone=alone):
                self.lost = True
            elif commits:
                attempt.commit_answered(committed=many or transaction.refused(what))
                if what[0] & COMMIT:
                    transaction.undone()
            if many:  # some of them may have been carried out
                transaction.answered(what, autocommit=autocommit)
            raise
        finally:
            self.busy -= 1
        if commits:
            attempt.commit_answered(committed=True)
        if undoes:
            self.failed = None
        transaction.answered(what, autocommit=autocommit)

    def _is_answer(
        self, attempt: Attempt, exc: BaseException, *, commits: bool, alone: bool
    ) -> bool:
        if not isinstance(exc, Exception):
            return False
        failure = attempt.saw(exc, commits=commits)
        if failure is None:
            return isinstance(exc, self._errors)
        is_answer = failure.kind != "disconnection"
        if not (is_answer and alone):
            self.failed = exc
        return is_answer
