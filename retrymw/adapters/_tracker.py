"""What goes on on a connection, told to the attempt that it is on loan to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from retrymw._context import Attempt, Running, running
from retrymw.adapters._statements import ROLL_BACK, STAYS, Transaction, look
from retrymw.classify import Failure

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
        touched: the session has something that a rollback does not undo (``LOCK TABLES``, ``USE``):
            it is not fit for somebody else.
    """

    __slots__ = (
        "_database",
        "_ddl_commits",
        "_errors",
        "_returned",
        "_transaction",
        "attempt",
        "busy",
        "failed",
        "lost",
        "touched",
    )

    def __init__(
        self, errors: type[Exception] | tuple[type[Exception], ...], *, ddl_commits: bool
    ) -> None:
        self._errors = errors
        self._ddl_commits = ddl_commits
        self.busy = 0
        self.lost = self.touched = False
        self.lend(None)
        self._returned = False  # it is new

    def lend(self, attempt: Attempt | None, database: object = None) -> None:
        """From here on the connection, in no transaction, is that attempt's, or nobody's.

        Its failures are told as those of ``database``, as the middleware was given it.
        """
        self.attempt = attempt
        self._database = database
        self.failed: BaseException | None = None
        self._returned = attempt is None
        if attempt is not None:
            self.touched = False
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
            RuntimeError: this code is part of an attempt that is over, or of another one than the
                connection's.
        """
        attempt, transaction = self.attempt, self._transaction
        run = running.get()
        if attempt is None and (run is None or not run.over):
            yield
            return
        what = look(statement)
        undoes = what[0] & ROLL_BACK
        if run is not None:
            self._check_user(run, undoes=bool(undoes))
        if attempt is None:
            yield
            return
        if self.failed is not None and not undoes:
            raise self.failed
        handling = sys.exc_info()[1]
        commits = transaction.commits(what, autocommit=autocommit)
        if commits:
            attempt.commit_sent()
        if any(does & STAYS for does in what):
            self.touched = True
        self.busy += 1
        try:
            yield
        except BaseException as exc:
            alone = transaction.is_alone(autocommit=autocommit)
            failure = attempt.saw(exc, commits=commits, handling=handling, database=self._database)
            answered = self._is_answer(exc, failure)
            if failure is not None and not (answered and alone):
                self.failed = exc
            if not answered:
                self.lost = True
            elif commits:
                attempt.commit_answered(committed=many or transaction.refused(what))
            transaction.failed(what, answered=answered, autocommit=autocommit, many=many)
            raise
        finally:
            self.busy -= 1
        if commits:
            attempt.commit_answered(committed=True)
        if undoes:
            self.failed = None
        transaction.answered(what, autocommit=autocommit)

    @property
    def doubtful(self) -> bool:
        """Whether a COMMIT may come to nothing without an error; ``SELECT 1`` raises it then.

        PostgreSQL rolls back when it is asked to commit a transaction in which something failed.
        """
        return self._transaction.doubtful

    def _check_user(self, run: Running, *, undoes: bool) -> None:
        """Only the attempt that has the connection uses it; who undoes it may come after that."""
        if self.attempt is None:
            mine = undoes or not self._returned
        else:
            mine = self.attempt is run._attempt and (undoes or not run.over)
        if not mine:
            raise RuntimeError(
                "the attempt of this code is over, or the connection is another one's: a thread or "
                "task that outlives its attempt can't use the attempt's connection; open one of "
                "its own"
            )

    def _is_answer(self, exc: BaseException, failure: Failure | None) -> bool:
        """Whether the server said so; in doubt it has not."""
        if failure is None:
            return isinstance(exc, self._errors)
        return failure.kind != "disconnection"
