"""The waiting rooms of one middleware: the machine of ``_core/room.py`` with a clock and a lock."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import Any, Final, Protocol

from retrymw._core.exchange import Command, Exchange, Refuse, Replay
from retrymw._core.failure import Failure
from retrymw._core.policy import SAFE_METHODS, RetryPolicy
from retrymw._core.room import Room
from retrymw._core.routes import route_of
from retrymw._core.ticket import RoomSnapshot, Ticket
from retrymw.classify import classify

__all__ = ["Place", "WaitingRooms"]


class Guest(Protocol):
    """What a waiting room has to know of a run of the app."""

    started: float
    place: Place | None
    request: Any

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def exchange(self) -> Exchange: ...
    @property
    def failed_database(self) -> object: ...


class Place(Ticket):
    """A ticket, and whose room it is for."""

    __slots__ = ("room",)

    room: Room


class WaitingRooms:
    """One room per database that a failure names, one for all else; each event loop has its own.

    Threads may call every method. ``wake`` of a place is called with the lock held.

    Args:
        policy: the middleware's.
        most: how many requests may wait where the policy does not say, by the scope or environ of
            one of them.
        loop: what stands for the event loop that it is called in; None under WSGI.

    Attributes:
        open: the rooms that are not calm. While this is empty there is nothing to be told.
        closed: nobody waits any more.
    """

    __slots__ = ("__weakref__", "_lock", "_loop", "_most", "_policy", "closed", "open")

    def __init__(
        self,
        policy: RetryPolicy,
        most: Callable[[Any], int],
        loop: Callable[[], object] = lambda: None,
    ) -> None:
        self._policy = policy
        self._most = most
        self._loop = loop
        self._lock = threading.RLock()  # a finaliser, or a signal's handler, may come in
        self.open: dict[tuple[Any, object], Room] = {}
        self.closed = False
        _all.add(self)

    # Of a request.

    def arrive(self, run: Guest) -> None:
        """Give a new request a place if it is to wait its turn: one that may already be over."""
        route = route_of(run.method, run.path)
        now = monotonic()
        with self._lock:
            self._forget_the_calm(now)
            room = next((room for room in self._rooms_here() if room.concerns(route)), None)
            if room is None:
                return
            policy = self._policy
            safe = run.method in SAFE_METHODS and run.method in policy.methods
            spare = policy.max_replays if safe else 0  # not routed yet, it has no mark
            place = run.place = Place(run.started, run.started + policy.deadline, spare)
            place.room = room
            _wake(room.arrive(now, place))
            if place.state == "waiting" and (self.closed or self._waiting > self._limit(run)):
                _wake(room.leave(now, place))

    def ended(
        self,
        run: Guest,
        *,
        failure: Failure | None,
        raised: bool,
        status: int | None,
    ) -> Command:
        """An attempt is over: what to do. Its connections are not back yet."""
        exchange = run.exchange
        known = len(exchange.failures)
        command = exchange.ended(monotonic(), failure=failure, raised=raised, status=status)
        if len(exchange.failures) == known:
            return command
        return self._failed(run, exchange.failures[-1], command)

    def _failed(self, run: Guest, failure: Failure, command: Command) -> Command:
        exchange = run.exchange
        policy = exchange.policy
        now = monotonic()
        with self._lock:
            self._forget_the_calm(now)
            room = self._room(run.failed_database)
            place = run.place
            if place is not None and place.room is not room:
                _wake(place.room.leave(now, place))
                place = None
            if place is None:
                place = run.place = Place(run.started, 0.0, 0)
                place.room = room
            place.deadline = run.started + policy.deadline
            place.spare = policy.max_replays - exchange.number
            room.failed(now, failure, route_of(run.method, run.path), place)
            if isinstance(command, Replay):
                alone = room.is_empty and room.leaving == 1
                if alone and now + command.after >= place.deadline:
                    command = exchange.refuse("deadline", command.after)
                elif self.closed or self._waiting > self._limit(run):
                    command = exchange.refuse("overload", command.after)
            if isinstance(command, Refuse):
                command = _advised(command, room, now)
        return command

    def wait(self, place: Place, seconds: float) -> None:
        """What the attempt did is undone: begin to wait, so many ``seconds`` if alone."""
        if place.state != "leaving":
            return  # it had none
        now = monotonic()
        with self._lock:
            _wake(place.room.wait(now, place, now + seconds))
            if self.closed:
                _wake(place.room.leave(now, place))

    def called(self, run: Guest) -> Refuse | None:
        """It waits no longer: its next attempt begins, unless there is none."""
        exchange, place = run.exchange, run.place
        if place is None:
            return None
        now = monotonic()
        late = now >= place.deadline
        if place.state == "running" and (exchange.failures or not late):
            refusal = exchange.begin(now) if exchange.failures else None
        else:
            refusal = exchange.give_up("deadline" if late else "overload", place.room.failure)
        if refusal is None:
            return None
        with self._lock:
            return _advised(refusal, place.room, now)

    def done(self, run: Guest, status: int | None) -> None:
        """The app has answered, with that status, and its connections are back."""
        # An answer in spite of a failure, such as what the app had cached, is no success.
        if status is None or status >= 500 or run.exchange.dooms:
            self.leave(run)
            return
        place = run.place
        now = monotonic()
        sure = status < 400  # or it may have come before the database was asked
        with self._lock:
            if place is not None:
                if place.state == "running":  # or it has answered before
                    _wake(place.room.worked(now, place, sure=sure))
            elif sure:
                route = route_of(run.method, run.path)
                for room in self._rooms_here():
                    if route in room.routes:
                        _wake(room.worked(now, None))
            self._forget_the_calm(now)

    def answered(self, run: Guest, status: int | None) -> None:
        """The app has begun to answer, and goes on: it streams, or works in the background."""
        place = run.place
        if place is None or status is None or status >= 400 or run.exchange.dooms:
            return
        with self._lock:
            if place.state == "running":
                _wake(place.room.answered(monotonic(), place))

    def leave(self, run: Guest) -> None:
        """The request is not in its room any more, whatever it was doing there."""
        place = run.place
        if place is not None and place.state != "over":
            with self._lock:
                _wake(place.room.leave(monotonic(), place))

    # Of one that waits.

    def alarm(self, place: Place) -> float:
        """In how many seconds to ``tick``, if nobody wakes it before."""
        with self._lock:
            now = monotonic()
            return max(0.0, place.room.alarm(now, place) - now)

    def tick(self, place: Place) -> None:
        """It was woken, or its alarm has gone off."""
        with self._lock:
            _wake(place.room.tick(monotonic(), place))

    def ping_due(self, place: Place) -> bool:
        """Whether it is to ping the database now, and to say ``pinged`` then."""
        with self._lock:
            return place.room.ping_due(monotonic(), place)

    def pinged(self, room: Room, error: BaseException | None) -> None:
        """The ping is over; ``error`` is what it raised."""
        answered: bool | None = error is None
        if isinstance(error, Exception) and classify(error) is None:
            answered = None
        with self._lock:
            _wake(room.pinged(monotonic(), answered=answered))

    # Of all.

    def close(self) -> None:
        """Nobody waits any more: the server shuts down. From any thread."""
        with self._lock:
            self.closed = True
            for (loop, _), room in self.open.items():
                woken = room.close()
                if loop is None:
                    _wake(woken)
                    continue
                call: Any = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
                with suppress(RuntimeError):  # it has ended, and so have those that waited
                    call(_wake, woken)

    def snapshots(self) -> list[RoomSnapshot]:
        """The rooms that are not calm."""
        now = monotonic()
        with self._lock:
            self._forget_the_calm(now)
            return [room.snapshot(now) for room in self.open.values()]

    def snapshot(self, run: Guest) -> RoomSnapshot | None:
        """The room of this request's last failure."""
        place = run.place
        if place is None:
            return None
        with self._lock:
            return place.room.snapshot(monotonic())

    def _rooms_here(self) -> Iterator[Room]:
        here = self._loop()
        return (room for (loop, _), room in self.open.items() if loop == here)

    def _room(self, database: object) -> Room:
        key = (self._loop(), database)
        room = self.open.get(key)
        if room is None:
            room = self.open[key] = Room(database, pings=database is not None)
        return room

    def _forget_the_calm(self, now: float) -> None:
        over = [
            (loop, database)
            for (loop, database), room in self.open.items()
            if room.is_calm(now) or getattr(loop, "is_closed", bool)()  # with all that waited in it
        ]
        for key in over:
            del self.open[key]

    @property
    def _waiting(self) -> int:
        return sum(len(room.queue) + room.leaving for room in self.open.values())

    def _limit(self, run: Guest) -> int:
        most = self._policy.max_waiting
        return self._most(run.request) if most is None else most


def _wake(tickets: Iterable[Ticket]) -> None:
    for ticket in tickets:
        if ticket.wake is not None:
            ticket.wake()


def _advised(refusal: Refuse, room: Room, now: float) -> Refuse:
    if refusal.retry_after is None:
        return refusal
    return replace(refusal, retry_after=room.retry_after(now, refusal.retry_after))


_all: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def close_all() -> None:
    """The interpreter shuts down, and waits for its threads."""
    for rooms in list(_all):
        rooms.close()
