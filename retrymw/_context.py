"""The current attempt."""

from __future__ import annotations

import contextvars
import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeVar, overload

from retrymw._core.exchange import Exchange, Sealed
from retrymw._core.failure import Failure
from retrymw._core.ticket import RoomSnapshot
from retrymw._recording import Recording
from retrymw._settings import Settings
from retrymw._waiting import Place
from retrymw.classify import classify
from retrymw.exceptions import DisconnectionError
from retrymw.marks import read_mark

__all__ = ["Attempt", "Running", "current_attempt", "is_inside", "running"]

D = TypeVar("D")
Callback = Callable[[], object]

running: Final[contextvars.ContextVar[Running | None]] = contextvars.ContextVar(
    "retrymw_running", default=None
)

_MOST_KNOWN: Final = 15  # an attempt may go on failing for long; the last ones are what is wrapped
_making: Final = threading.RLock()  # a finaliser may come in while it is held


class Running:
    """A run of the app. Its attempt and exchange are made when somebody asks: few requests do."""

    __slots__ = (
        "_attempt",
        "_committed",
        "broken",
        "endpoint",
        "number",
        "over",
        "place",
        "recording",
        "released",
        "request",
        "settings",
        "started",
    )

    settings: Settings
    request: Any  # the ASGI scope or the WSGI environ
    started: float
    number: int
    over: bool
    place: Place | None  # in a waiting room
    recording: Recording | None
    released: bool  # the client has a part of the response
    endpoint: object  # for integrations to set, where the request does not have it
    broken: Exception | None  # what the commit of a unit of work raised
    _committed: bool
    _attempt: Attempt | None

    @property
    def method(self) -> str:
        """The request's method."""
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The request's path, as it came."""
        raise NotImplementedError

    @property
    def failed_database(self) -> object:
        """Whose waiting room a failure of this attempt is for; None if that is not known."""
        known = self.settings.databases
        if len(known) > 1:
            attempt = self.attempt
            known = tuple(attempt.resources or ()) if attempt.named is None else (attempt.named,)
        return known[0] if len(known) == 1 else None

    @property
    def sealed(self) -> Sealed | None:
        """What keeps a replay from following, as far as this run knows."""
        if self.released:
            return "response"
        recording = self.recording
        return "recording" if recording is not None and recording.dropped else None

    def to_commit(self, status: int | None) -> list[Any]:
        """The databases to be committed before a response with this status is released.

        Raises:
            Exception: what the commit raised when it was tried before.
        """
        if self.broken is not None:
            raise self.broken
        units = self._units(status)
        self._committed = self._committed or bool(units)
        return units

    def _units(self, status: int | None) -> list[Any]:
        attempt = self._attempt
        if self._committed or attempt is None or status is None or status >= 400:
            return []
        return [unit for unit in self.settings.units if unit in (attempt.resources or ())]

    def is_uncommitted(self, status: int | None) -> bool:
        """Whether a response with this status would promise what was not committed."""
        return self.broken is not None or bool(self._units(status))

    def broke(self, exc: BaseException) -> None:
        """The commit has failed: so has the attempt, whatever the app makes of it (G4)."""
        if not isinstance(exc, Exception):  # apps swallow cancellations of their own
            exc = DisconnectionError("the commit was cancelled", phase="commit")
        self.broken = exc
        self.attempt.saw(exc)

    @property
    def attempt(self) -> Attempt:
        """This run as the app and the adapters see it."""
        with _making:
            if self._attempt is None:
                made = Attempt(Exchange(self.settings.policy, self.method, self.started), self)
                if self._attempt is None:
                    self._attempt = made
            return self._attempt

    @property
    def exchange(self) -> Exchange:
        """The exchange that this run is part of."""
        return self.attempt._exchange


class Attempt:
    """One run of the app for one request. Get it from :func:`current_attempt`."""

    __slots__ = (
        "_exchange",
        "_run",
        "known",
        "named",
        "number",
        "resources",
        "rollback_callbacks",
        "seen",
        "success_callbacks",
    )

    def __init__(self, exchange: Exchange, run: Running) -> None:
        self._exchange = exchange
        self._run = run
        self.number: int = exchange.number
        self.resources: dict[Any, Any] | None = None
        self.seen: BaseException | None = None  # the last failure, as the layer that saw it has it
        self.known: tuple[Failure, ...] = ()  # what was made of it, and of those before it, then
        self.named: object = None  # the database that it was
        self.rollback_callbacks: list[Callback] | None = None
        self.success_callbacks: list[Callback] | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self._exchange.method}{' (over)' if self.over else ''}>"

    @property
    def over(self) -> bool:
        """Whether the app has returned, or the attempt has failed."""
        return self._run.over

    @property
    def is_replay(self) -> bool:
        """Whether this is attempt 2 or later."""
        return self.number > 1

    @property
    def is_last(self) -> bool:
        """Whether no replay follows this attempt, however it fails, as far as is known now."""
        self.look_for_mark()
        return self._run.sealed is not None or not self._exchange.may_replay_again

    @property
    def key(self) -> str:
        """A random key, the same in all attempts of the exchange: an idempotency key for others."""
        exchange = self._exchange
        with _making:
            if exchange.key is None:
                exchange.key = uuid.uuid4().hex
            return exchange.key

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Why the earlier attempts failed, oldest first."""
        return self._exchange.failures[: self.number - 1]

    def waiting_rooms(self) -> list[RoomSnapshot]:
        """The middleware's waiting rooms that are not calm, for a status page; mostly none."""
        return self._run.settings.rooms.snapshots()

    def fence(self, reason: str) -> None:
        """From here on this request must not run again, whatever happens (G3).

        Args:
            reason: for the log, such as ``"card charged"``.
        """
        if not isinstance(reason, str) or not reason:
            raise TypeError(f"fence() was given {reason!r}; allowed: a reason, a non-empty string")
        self._exchange.fence(reason)

    def doom(self, exc: BaseException) -> None:
        """A database layer saw a failure: whatever the app makes of it, a 5xx means a replay.

        Args:
            exc: the exception. One that ``classify`` does not know counts as a disconnection whose
                phase is unknown, since the caller knows better.
        """
        if not self.over and isinstance(exc, Exception):  # G6: nothing else is a reason to replay
            self._note(exc, classify(exc) or Failure("disconnection", "unknown", exc))

    def on_rollback(self, callback: Callback) -> None:
        """Call ``callback()`` when this attempt has been undone; an error in it is logged."""
        self.rollback_callbacks = self._with(self.rollback_callbacks, callback)

    def on_success(self, callback: Callback) -> None:
        """Call ``callback()`` once, after the response, if it is this attempt's that was sent.

        Under ASGI a coroutine function is awaited and any other runs in a worker thread. An error
        in it is logged: the client has its answer.
        """
        self.success_callbacks = self._with(self.success_callbacks, callback)

    def _with(self, callbacks: list[Callback] | None, callback: Callback) -> list[Callback]:
        if not callable(callback):
            raise TypeError(f"a callback is {callback!r}; allowed: a function without arguments")
        if self.over:
            raise RuntimeError(f"{self!r} is over: nobody would call {callback!r}")
        if callbacks is None:
            callbacks = []
        callbacks.append(callback)
        return callbacks

    def saw(
        self,
        exc: BaseException,
        *,
        commits: bool = True,
        handling: BaseException | None = None,
        database: object = None,
    ) -> Failure | None:
        """For adapters and integrations: doom this attempt if ``exc`` is a failure of ours.

        Args:
            exc: the exception.
            commits: False where it is known that nothing was being committed when it struck, for
                example because the statement was part of a transaction (G4).
            handling: what was handled already when the statement began (``sys.exc_info()[1]``);
                that is no part of what became of it.
            database: whose failure it is, as the middleware was given it: its waiting room is
                where the request waits. None if that is not known.
        """
        failure = classify(exc, known=self.known, handling=handling)
        if failure is not None and not self.over:
            if failure.leaves_commit_unknown and not commits:
                failure = replace(failure, phase="execute")
            self._note(exc, failure)
            self.named = self.named if database is None else database
        return failure

    def _note(self, exc: BaseException, failure: Failure) -> None:
        self.seen = exc
        if failure not in self.known:
            self.known = (*self.known[-_MOST_KNOWN:], failure)
        self._exchange.doom(failure)

    def look_for_mark(self) -> None:
        """For the shells: tell the exchange the mark of the endpoint that was routed to, if any."""
        run = self._run
        endpoint = run.endpoint
        try:
            if endpoint is None:
                endpoint = run.settings.find_endpoint(run.request)
            mark = read_mark(endpoint, self._exchange.method)
        except Exception:  # an integration's or an endpoint's own code must not hide the failure
            logging.getLogger("retrymw").exception("looking for the endpoint's mark failed")
            return
        if mark is not None:  # a replay that fails before it is routed is still of that endpoint
            self._exchange.mark = mark

    # For adapters.

    def commit_sent(self) -> None:
        """For adapters: a COMMIT is about to be sent (G4)."""
        if not self.over:
            self._exchange.commit_sent()

    def commit_answered(self, *, committed: bool) -> None:
        """For adapters: the server answered the COMMIT; without an answer don't call this (G4)."""
        if not self.over:
            self._exchange.commit_answered(committed=committed)

    def resource(self, database: D) -> dict[D, Any]:
        """For adapters: where to keep what was opened for this attempt, under ``database``.

        Raises:
            RuntimeError: the attempt is over, or the middleware does not know ``database``.
        """
        if self.over:
            raise RuntimeError(
                f"{self!r} is over: a thread or task that outlives its attempt can't use the "
                "attempt's connection; open one of its own"
            )
        if not any(known is database for known in self._run.settings.databases):
            raise RuntimeError(
                f"the middleware of this request does not know {database!r}, so it could not give "
                "its connection back: add it, as in RetryMiddleware(app, databases=[database])"
            )
        if self.resources is None:
            self.resources = {}
        return self.resources


class _Missing:
    pass


_MISSING: Final = _Missing()


@overload
def current_attempt() -> Attempt: ...
@overload
def current_attempt(default: D) -> Attempt | D: ...
def current_attempt(default: object = _MISSING) -> object:
    """The attempt this code runs in, in the endpoint's task, its worker threads and its tasks.

    Args:
        default: what to return outside a request that the middleware handles.

    Raises:
        LookupError: outside such a request, without a default.
    """
    run = running.get()
    if run is not None:
        return run.attempt
    if default is _MISSING:
        raise LookupError(
            "current_attempt() was called outside a request that retrymw handles; in code that "
            "also runs elsewhere use current_attempt(None)"
        )
    return default


def is_inside(run: Running) -> bool:
    """Whether code that runs in the context of ``run`` is part of a request that is being handled.

    Servers may start the next request of a connection in a context copied from the one before, so a
    run that is over, or whose response is out, does not count.
    """
    return not run.over and not run.released
