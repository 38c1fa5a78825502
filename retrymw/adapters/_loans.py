"""Connections on loan to attempts: what the adapters of drivers have in common."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Generic, Literal, TypeVar

from retrymw._context import Attempt, current_attempt

__all__ = ["Commit", "Keeper", "Lender", "check_commit", "check_not_over", "loan_of"]

C = TypeVar("C")

Commit = Literal["on-success"] | None
_COMMITS: Final = (None, "on-success")


def check_commit(commit: object) -> bool:
    """Whether the middleware commits what a successful attempt leaves.

    Raises:
        ValueError: ``commit`` is neither None nor ``"on-success"``.
    """
    if commit not in _COMMITS:
        raise ValueError(f"commit is {commit!r}; allowed: None, or 'on-success'")
    return commit is not None


class Keeper:
    """A database that keeps a loan for each attempt, and ends it as the middleware says.

    Args:
        commit: ``"on-success"`` to commit what an attempt leaves when its response is about to be
            sent and is below 400. None leaves it to the app, and to be undone.
    """

    def __init__(self, *, commit: Commit = None) -> None:
        self.commits_on_success: bool = check_commit(commit)

    def commit(self, attempt: Attempt) -> None:
        """Commit the attempt's transaction, if it has begun one.

        Raises:
            Exception: what the driver or layer raises, also where PostgreSQL would answer the
                COMMIT of an aborted transaction with a ROLLBACK.
        """
        loan = loan_of(self, attempt)
        if loan is not None:
            loan.commit()

    def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction, within four seconds."""
        loan = loan_of(self, attempt)
        if loan is not None:
            loan.rollback()

    def release(self, attempt: Attempt) -> None:
        """Give the attempt's connection back, or close it if it is not fit for another use."""
        loan = loan_of(self, attempt)
        if loan is not None:
            loan.give_back()


class Lender(Keeper, ABC, Generic[C]):
    """A database whose connections are lent to attempts, one to each.

    An adapter says how a connection is opened, rolled back, committed and given back. They are
    called by different threads, one at a time, except that a commit which was given up may still be
    under way when it is rolled back.
    """

    @contextmanager
    def _lent(self) -> Iterator[C]:
        """The attempt's connection; outside a request, one of its own, given back at the end."""
        attempt = current_attempt(None)
        if attempt is None:
            loan = _Loan(self, None)
            try:
                yield loan.get()
            finally:
                loan.give_back()
        else:
            resources = attempt.resource(self)
            yield (resources.get(self) or resources.setdefault(self, _Loan(self, attempt))).get()

    @abstractmethod
    def ping(self) -> None:
        """Raise what the driver raises if the database can't be worked with now."""

    @abstractmethod
    def _open(self, attempt: Attempt | None) -> C: ...

    @abstractmethod
    def _commit(self, connection: C) -> None: ...

    @abstractmethod
    def _roll_back(self, connection: C) -> None: ...

    @abstractmethod
    def _give_back(self, connection: C) -> None: ...

    def _check(self, connection: C, attempt: Attempt | None) -> None:
        """Raise if the app did with the connection what it must not."""


class _Loan(Generic[C]):
    def __init__(self, lender: Lender[C], attempt: Attempt | None) -> None:
        self._lender = lender
        self._attempt = attempt
        self._lock = threading.Lock()
        self._connection: C | None = None
        self._over = False

    def get(self) -> C:
        with self._lock:
            check_not_over(self._over, self._attempt)
            if self._connection is None:
                try:
                    self._connection = self._lender._open(self._attempt)
                except Exception as exc:
                    if self._attempt is not None:
                        self._attempt.saw(exc, database=self._lender)
                    raise
                if self._over:  # it took too long: nobody waits for it any more
                    self._give_back()
                    check_not_over(self._over, self._attempt)
            else:
                self._lender._check(self._connection, self._attempt)
            return self._connection

    def commit(self) -> None:
        connection = self._connection  # without the lock: to undo does not wait for a commit
        if connection is not None:
            self._lender._check(connection, self._attempt)
            self._lender._commit(connection)

    def rollback(self) -> None:
        if self._connection is not None:  # or somebody is still connecting, who is not waited for
            with self._lock:
                if self._connection is not None:
                    self._lender._roll_back(self._connection)

    def give_back(self) -> None:
        self._over = True
        if self._connection is not None:
            with self._lock:
                self._give_back()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._lender._give_back(connection)


def loan_of(lender: object, attempt: Attempt) -> Any:
    """What the lender has lent to the attempt, or None."""
    return (attempt.resources or {}).get(lender)


def check_not_over(over: bool, attempt: Attempt | None) -> None:
    """Raise RuntimeError if a loan is over."""
    if over:
        raise RuntimeError(f"the connection of {attempt!r} was given back already")
