"""What makes a peewee database belong to attempts: its state, and what is sent through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from retrymw._context import Attempt, current_attempt
from retrymw.adapters._peewee_loan import Loan

__all__ = ["State", "watch"]


class State:
    """What peewee keeps of a connection: the attempt's; outside of attempts, the thread's."""

    __slots__ = ("_outside", "adapter", "make")

    adapter: object
    make: Callable[[Attempt], Loan]

    def __init__(self, adapter: object, make: Callable[[Attempt], Loan], outside: Any) -> None:
        for name, value in (("adapter", adapter), ("make", make), ("_outside", outside)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        attempt = current_attempt(None)
        if attempt is None:
            return getattr(self._outside, name)
        loan = self.peek(attempt)
        if loan is None and name == "closed":
            return True  # to ask is no use yet
        return getattr((loan or self._lend(attempt)).state, name)

    def __setattr__(self, name: str, value: object) -> None:
        loan = self.loan()
        setattr(self._outside if loan is None else loan.state, name, value)

    def peek(self, attempt: Attempt) -> Loan | None:
        """The loan of this attempt, if it has one and is not over."""
        resources = attempt.resources
        return None if resources is None or attempt.over else resources.get(self.adapter)

    def loan(self) -> Loan | None:
        """The loan of the current attempt; None outside of attempts.

        Raises:
            RuntimeError: the attempt is over, or its middleware was not given the adapter.
        """
        attempt = current_attempt(None)
        return None if attempt is None else self.peek(attempt) or self._lend(attempt)

    def _lend(self, attempt: Attempt) -> Loan:
        resources = attempt.resource(self.adapter)
        loan: Loan = resources.setdefault(self.adapter, self.make(attempt))  # another's, if faster
        return loan


def _watched(cls: Any) -> Any:
    """A subclass, of the same layout: an object that exists can be made one of it."""

    class Watched(cls):  # type: ignore[misc]  # whatever it is
        """A peewee database that tells the attempt what it sends."""

        def connect(self, reuse_if_open: bool = False) -> Any:
            connect = super().connect
            loan = self._state.loan()
            if loan is None:
                return connect(reuse_if_open)
            return loan.connect(lambda: connect(reuse_if_open))

        def close(self) -> Any:
            attempt = current_attempt(None)
            if attempt is None:
                return super().close()
            loan = self._state.peek(attempt)
            if loan is None or loan.state.closed or loan.keeps:
                return False
            if loan.state.transactions:
                return super().close()  # it says what is wrong
            return loan.close()

        def connection(self) -> Any:
            connection = super().connection
            loan = self._state.loan()
            if loan is None:
                return connection()
            with loan.turn:
                found = connection()
                loan.opaque = True
                return found

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            cursor = super().cursor
            loan = self._state.loan()
            if loan is None:
                return cursor(*args, **kwargs)
            with loan.turn:
                made = cursor(*args, **kwargs)
                return made if loan.inside else _Cursor(made, loan)

        def execute_sql(self, sql: Any, *args: Any, **kwargs: Any) -> Any:
            execute = super().execute_sql
            loan = self._state.loan()
            if loan is None:
                return execute(sql, *args, **kwargs)
            return loan.send(_text(sql), execute, sql, *args, **kwargs)

        def begin(self, *args: Any, **kwargs: Any) -> None:
            begin = super().begin
            loan = self._state.loan()
            if loan is None:
                begin(*args, **kwargs)
            else:
                loan.send(b"BEGIN", begin, *args, **kwargs)

        def commit(self) -> None:
            commit = super().commit
            loan = self._state.loan()
            if loan is None or loan.state.closed:
                commit()
            else:
                loan.send(b"COMMIT", commit)

        def rollback(self) -> None:
            rollback = super().rollback
            loan = self._state.loan()
            if loan is None or loan.state.closed:
                rollback()
            elif not loan.gone:  # else there is nothing to undo, and an error would hide the cause
                loan.send(b"ROLLBACK", rollback)

    Watched.__name__, Watched.__qualname__ = cls.__name__, cls.__qualname__
    Watched.__module__ = cls.__module__
    return Watched


class _Cursor:
    """A cursor that the app asked for, of whatever driver."""

    def __init__(self, cursor: Any, loan: Loan) -> None:
        self._cursor = cursor
        self._loan = loan

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __enter__(self) -> _Cursor:
        self._cursor.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> Any:
        return self._cursor.__exit__(*exc_info)

    def execute(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        return self._send(_text(statement), self._cursor.execute, statement, *args, **kwargs)

    def executemany(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        many = self._cursor.executemany
        return self._send(_text(statement), many, statement, *args, many=True, **kwargs)

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        return self._send(b"CALL", self._cursor.callproc, *args, **kwargs)

    def _send(self, statement: bytes, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = self._loan.send(statement, call, *args, **kwargs)
        return self if answer is self._cursor else answer


def _text(statement: Any) -> bytes:
    """A statement as bytes; ``CALL``, which may do anything, for what is none of the usual."""
    if isinstance(statement, str):
        return statement.encode(errors="replace")
    return statement if isinstance(statement, bytes) else b"CALL"


def watch(database: Any, adapter: object, make: Callable[[Attempt], Loan]) -> None:
    """Let a peewee database's state be the attempt's, within attempts."""
    database._state = State(adapter, make, database._state)
    database.__class__ = _watched(type(database))
