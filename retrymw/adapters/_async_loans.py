"""Connections on loan to attempts, for drivers whose calls are coroutines."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from retrymw._context import Attempt, current_attempt
from retrymw.adapters._loans import Commit, check_commit, check_not_over, loan_of

__all__ = ["AsyncLender"]

C = TypeVar("C")


class AsyncLender(ABC, Generic[C]):
    """:class:`~retrymw.adapters._loans.Lender` for a driver whose calls are coroutines."""

    def __init__(self, *, commit: Commit = None) -> None:
        self.commits_on_success: bool = check_commit(commit)

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[C]:
        """The attempt's connection; outside a request, one of its own, given back at the end."""
        attempt = current_attempt(None)
        if attempt is None:
            loan = _AsyncLoan(self, None)
            try:
                yield await loan.get()
            finally:
                await loan.give_back()
        else:
            resources = attempt.resource(self)
            loan = resources.get(self) or resources.setdefault(self, _AsyncLoan(self, attempt))
            yield await loan.get()

    async def commit(self, attempt: Attempt) -> None:
        """Commit the attempt's transaction, if it has begun one."""
        loan = loan_of(self, attempt)
        if loan is not None:
            await loan.commit()

    async def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction; the middleware gives up after five seconds."""
        loan = loan_of(self, attempt)
        if loan is not None:
            await loan.rollback()

    async def release(self, attempt: Attempt) -> None:
        """Give the attempt's connection back, or close it if it is not fit for another use."""
        loan = loan_of(self, attempt)
        if loan is not None:
            await loan.give_back()

    @abstractmethod
    async def ping(self) -> None:
        """Raise what the driver raises if the database can't be worked with now."""

    @abstractmethod
    async def _open(self, attempt: Attempt | None) -> C: ...

    @abstractmethod
    async def _commit(self, connection: C) -> None: ...

    @abstractmethod
    async def _roll_back(self, connection: C) -> None: ...

    @abstractmethod
    async def _give_back(self, connection: C) -> None: ...

    def _check(self, connection: C, attempt: Attempt | None) -> None:
        """Raise if the app did with the connection what it must not."""


class _AsyncLoan(Generic[C]):
    def __init__(self, lender: AsyncLender[C], attempt: Attempt | None) -> None:
        self._lender = lender
        self._attempt = attempt
        self._lock = asyncio.Lock()
        self._connection: C | None = None
        self._over = False

    async def get(self) -> C:
        async with self._lock:
            check_not_over(self._over, self._attempt)
            if self._connection is None:
                try:
                    self._connection = await self._lender._open(self._attempt)
                except Exception as exc:
                    if self._attempt is not None:
                        self._attempt.saw(exc, database=self._lender)
                    raise
                if self._over:  # it took too long: nobody waits for it any more
                    await self._give_back()
                    check_not_over(self._over, self._attempt)
            else:
                self._lender._check(self._connection, self._attempt)
            return self._connection

    async def commit(self) -> None:
        async with self._lock:
            if self._connection is not None:
                self._lender._check(self._connection, self._attempt)
                await self._lender._commit(self._connection)

    async def rollback(self) -> None:
        if self._connection is not None:  # or somebody is still connecting, who is not waited for
            async with self._lock:
                if self._connection is not None:
                    await self._lender._roll_back(self._connection)

    async def give_back(self) -> None:
        self._over = True
        if self._connection is not None:
            async with self._lock:
                await self._give_back()

    async def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._lender._give_back(connection)
