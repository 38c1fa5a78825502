"""The waiting room: where exchanges wait for one database, as a machine without I/O.

Rules
=====

1. Never more replays are let in than the window has room for; one, while nothing is known to work.
2. First come, first served, by when the request arrived: who fails again gets its old place back.
3. What lets the next one in is that one has come out and worked. Clocks do so only where nothing
   comes out: while the database is gone, or in a shortage that others have caused.
4. Nobody waits past its deadline, and nobody's replays are spent on finding out more than must be.
5. A request that waits alone is never called later than its own wait says.
6. A calm room knows nothing and costs nothing.

Theory of operation
===================

A shell owns one room per database, and tells it what becomes of the runs of its app. A ticket
stands for a request in the room: it is *waiting*, *running* (let in, not yet out), *leaving* (it
has failed and is being undone: it may still hold a connection) or *over*. Every method answers with
the tickets that something has changed for; the shell wakes these, and looks at their state.

**Window.** How many tickets may run at once. It is not configured, it is found out. When a server
refuses a connection, what runs besides is what works: that becomes the window. Requests that had
been under way when the room opened count as well: each that works opens the window by one and lets
one in, so that what is in flight stays what it was. Then the window is opened further, by one
ticket in so many: a server has room again when others have left it, and several workers that share
one server each have to find their share. The smaller a window, the sooner it tries (``_EAGERNESS``
tickets per window, divided by the window): shares become equal in the end. A window of successes
without a refusal doubles the pace.

**Probe.** A lost connection shuts the window; so does a refusal when nothing else runs. Then one at
a time finds out, a ping if the database has one, else a waiting ticket: one whose own wait is over,
of these the one with the most replays left, since somebody's last one is not for finding out. The
first that works opens the window to what worked before, or to ``_OPENING``, and from there on it
grows by each success until a refusal says where the end is. A probe that takes long must not keep
the others out for ever, so after ``_STALL`` seconds without anyone let in, one more goes.

**Leader.** Somebody has to watch the clock while nothing comes out. One waiting ticket does, so
that neither a task nor a thread is needed for it: ``alarm`` tells it until when to sleep, and
``tick`` what to do then. When it leaves, another one is woken and asks.

**Arrivals.** Once the database was found gone or full, the room is *shut*: a new request whose
method and path have failed since waits behind the others before its app is called.

The clock is the caller's: every ``now`` is in seconds, from any monotonic origin.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from retrymw._core.failure import Failure
from retrymw._core.routes import Routes

__all__ = ["Room", "RoomSnapshot", "Ticket"]

State = Literal["calm", "full", "gone", "recovering"]

# Seconds between two probes: 22 per second and process, whatever the load.
PROBE_SECONDS: Final = 0.045
# A ping that takes longer may hang: the waiting tickets find out for themselves.
PING_SECONDS: Final = 1.0
_STALL: Final = 0.5
_QUIET: Final = 1.0  # seconds without a failure, and nobody waits: calm
_OPENING: Final = 8
_EAGERNESS: Final = 6.0
_DOUBT: Final = 0.01
_SURE: Final = 0.99
_SHRINK: Final = 0.1  # of the window, with every refusal
_MEMORY: Final = 0.9  # of the service rate, per success
_LONGEST_ADVICE: Final = 60.0


class Ticket:
    """A request in the room.

    Args:
        arrived: when the request arrived.
        deadline: when it stops waiting.
        spare: how many failures it can still afford without being lost.

    Attributes:
        due: when its own wait is over.
        early: whether it may be called before that; a conflict's wait is for others to finish.
        state: see the top of the module.
        wake: for the shell.
    """

    __slots__ = ("arrived", "deadline", "due", "early", "spare", "state", "wake")

    def __init__(self, arrived: float, deadline: float, spare: int) -> None:
        self.arrived = arrived
        self.deadline = deadline
        self.spare = spare
        self.due = arrived
        self.early = True
        self.state: Literal["waiting", "running", "leaving", "over"] = "over"
        self.wake: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class RoomSnapshot:
    """A waiting room at one moment.

    Attributes:
        database: the adapter, as the middleware was given it; None for all that is not named.
        state: ``calm``; ``full``: the server, or the pool, gives no more connections than run;
            ``gone``: it is not reached; ``recovering``: it works again, and not all have had their
            turn.
        window: how many requests are let run at once; 0 while nothing is known to work.
        running: how many of those that were let in run.
        waiting: how many wait.
        oldest_wait: how long ago the first of them arrived, in seconds; 0.0 if nobody waits.
        last_failure: the last failure of the database, with its exception.
    """

    database: object
    state: State
    window: int
    running: int
    waiting: int
    oldest_wait: float
    last_failure: Failure | None


class Room:
    """The waiting room of one database. See the top of this module.

    Args:
        database: whose room it is, for the snapshot.
        pings: whether the shell can ping it.

    Attributes:
        queue: the tickets that wait, by arrival.
        running: how many of those that were let in run.
        leaving: how many have failed, and are about to wait or to go.
        shut: whether new requests are to wait, if their route is among ``routes``.
        failure: the last failure.
    """

    __slots__ = (
        "_alarm",
        "_clean",
        "_held",
        "_is_full",
        "_last_failure",
        "_last_let_in",
        "_last_probe",
        "_last_success",
        "_leader",
        "_pinged_open",
        "_pinging",
        "_pings",
        "_proven",
        "_rate",
        "_since",
        "_since_refusal",
        "_step",
        "_troubled",
        "_trust",
        "_window",
        "database",
        "failure",
        "leaving",
        "queue",
        "routes",
        "running",
        "shut",
    )

    def __init__(self, database: Any = None, *, pings: bool = False) -> None:
        self.database = database
        self.queue: list[Ticket] = []
        self.running = self.leaving = 0
        self.shut = False
        self.failure: Failure | None = None
        self.routes = Routes()
        self._window = 0.0
        self._proven = 0.0  # the window before it was shut; 0 if that is not known
        self._step = _EAGERNESS  # by how much the window opens per window of successes
        self._clean = 0.0  # successes since the last refusal, or since the step was doubled
        self._troubled = False  # by something else than conflicts,
        self._is_full = False  # the last time by too many connections
        self._since: float | None = None  # since when nothing is known to work
        self._last_failure = self._last_probe = self._last_let_in = -math.inf
        self._last_success: float | None = None
        self._since_refusal = 1  # how many that were let in have worked since one was refused
        self._trust = 1.0  # how much room it makes when a request that was not let in has worked
        self._rate = 0.0  # successes per second
        self._leader: Ticket | None = None
        self._alarm = math.inf
        self._pings = pings
        self._pinging: float | None = None  # since when
        self._held = False  # until somebody comes out, since one was refused
        self._pinged_open = False  # it is a ping that said that the database is back

    # What happens.

    def failed(self, now: float, failure: Failure, route: str, ticket: Ticket) -> None:
        """A run of the app failed: of a ticket, or of a request that gets its ticket now.

        Its connection is not back yet: ``wait`` or ``leave`` says when.
        """
        ran = ticket.state == "running"
        self.running -= ran
        self.leaving += ticket.state != "leaving"
        ticket.state = "leaving"
        ticket.early = failure.kind != "conflict"
        self.routes.add(route)
        self.failure = failure
        self._last_failure = now
        if failure.kind == "too-many-connections":
            self.shut = True
            self._last_probe = now
            if ran:
                self._refused()
        elif failure.kind == "disconnection":
            self.shut = self.shut or ran or failure.phase == "connect"
            self._proven = max(self._proven, self._window)
            self._window = 0.0
        if failure.kind != "conflict":
            self._troubled = True
            self._is_full = failure.kind == "too-many-connections"
            if self._since is None and self._window < 1:
                self._since = now
        if ran:
            self._last_probe = now if failure.kind != "conflict" else -math.inf  # that is an answer
        if ran and failure.kind != "conflict" and self._pinged_open:
            self._pings = self._pinged_open = False  # what pings is not what the app needs

    def wait(self, now: float, ticket: Ticket, due: float) -> list[Ticket]:
        """What the ticket did is undone, and it waits: ``due`` is when its own wait is over."""
        self.leaving -= 1
        ticket.due = due
        return self._queue(now, ticket)

    def arrive(self, now: float, ticket: Ticket) -> list[Ticket]:
        """A new request waits its turn; it may be let in at once."""
        ticket.due = max(now, self._last_probe + PROBE_SECONDS)
        return self._queue(now, ticket)

    def worked(self, now: float, ticket: Ticket | None) -> list[Ticket]:
        """A run of the app is over, and the database did its part.

        ``ticket`` is None for a request that was not in the room, though its route has failed.
        """
        self._measure(now)
        self._held = False
        if ticket is None:
            if self.shut or self._window < 1:
                self._window += self._trust
        elif self._window < 1:
            self._open()
        elif self.running >= int(self._window) and self.queue:
            self._grow()
        if self._window >= 1:
            self._since = None
        self._pinged_open = False
        if ticket is not None:
            self._since_refusal += 1
            self._trust = 1.0
        return self._let_in(now) if ticket is None else self.leave(now, ticket)

    def leave(self, now: float, ticket: Ticket) -> list[Ticket]:
        """The ticket is not in the room any more, whatever it was doing there."""
        if ticket.state == "running":
            self.running -= 1
            self._held = False
        self.leaving -= ticket.state == "leaving"
        if ticket.state == "waiting":
            self.queue.remove(ticket)
        ticket.state = "over"
        return self._let_in(now)

    def tick(self, now: float, ticket: Ticket) -> list[Ticket]:
        """The ticket's alarm has gone off, or it was woken."""
        if ticket.state == "waiting" and now >= ticket.deadline:
            return self.leave(now, ticket)
        if ticket is not self._leader:
            return []
        self._alarm = -math.inf  # it asks for the next one without being woken
        return self._let_in(now)

    def ping_due(self, now: float, ticket: Ticket) -> bool:
        """Whether this ticket is to ping; it must call ``pinged`` then, whatever happens."""
        if ticket is not self._leader or self._pinging is not None or not self._must_ping():
            return False
        if now < self._last_probe + PROBE_SECONDS:
            return False
        self._pinging = now
        return True

    def pinged(self, now: float, *, answered: bool | None) -> list[Ticket]:
        """The ping is over; ``answered`` is None if it says nothing of the database."""
        self._pinging = None
        if answered is None:
            self._pings = False
        elif not answered:
            self._last_probe = now
        elif self._window < 1:
            self._open()
            self._pinged_open = True
        return self._let_in(now)

    def close(self) -> list[Ticket]:
        """Nobody waits any more."""
        waiting, self.queue, self._leader = self.queue, [], None
        for ticket in waiting:
            ticket.state = "over"
        return waiting

    # What the shell asks.

    def alarm(self, now: float, ticket: Ticket) -> float:
        """Until when the ticket may sleep if nobody wakes it."""
        if ticket is not self._leader:
            return ticket.deadline
        self._alarm = self._next_alarm(now)
        return min(self._alarm, ticket.deadline)

    def is_calm(self, now: float) -> bool:
        """Whether there is nothing left to know."""
        return not (self.queue or self.leaving) and now >= self._last_failure + _QUIET

    def concerns(self, route: str) -> bool:
        """Whether a new request is to wait its turn here."""
        return self.shut and route in self.routes

    @property
    def is_empty(self) -> bool:
        """Whether nothing but its own wait can call the next ticket."""
        return not (self.running or self.queue or self._pings)

    def retry_after(self, now: float, wait: float) -> float:
        """Seconds after which it may be worth coming back.

        A database that has been gone for so long will be for as long again, give or take; and in a
        queue, those before have their turn first. ``wait`` is what the policy would say.
        """
        if self._since is not None and not self._is_full:
            return max(wait, min(now - self._since, _LONGEST_ADVICE))
        if self.shut and self._rate:
            return min((len(self.queue) + 1) / self._rate, _LONGEST_ADVICE)
        return wait

    def snapshot(self, now: float) -> RoomSnapshot:
        """What to show of it."""
        state: State = "recovering"
        if self.is_calm(now):
            state = "calm"
        elif self._is_full:
            state = "full"
        elif self._since is not None:
            state = "gone"
        return RoomSnapshot(
            self.database,
            state,
            int(self._window),
            self.running,
            len(self.queue),
            now - self.queue[0].arrived if self.queue else 0.0,
            self.failure,
        )

    # How it decides.

    def _queue(self, now: float, ticket: Ticket) -> list[Ticket]:
        ticket.state = "waiting"
        insort(self.queue, ticket, key=_arrived)
        return self._let_in(now)

    def _let_in(self, now: float) -> list[Ticket]:
        """Whose turn it is; and who is to watch the clock from now on."""
        woken: list[Ticket] = []
        while (ticket := self._next_ticket(now)) is not None:
            if not self._has_room:
                self._last_probe = now
            self.queue.remove(ticket)
            ticket.state = "running"
            self.running += 1
            self._last_let_in = now
            woken.append(ticket)
        leader = self._leader
        if leader is None or leader.state != "waiting":
            # The last one, since it stays the longest.
            self._leader = leader = self.queue[-1] if self.queue else None
            self._alarm = math.inf
        if leader is not None and self._next_alarm(now) < self._alarm:
            woken.append(leader)
        return woken

    def _next_ticket(self, now: float) -> Ticket | None:
        if not self.queue:
            return None
        if self._has_room:
            return self._next_ready(now)
        if now < self._next_probe(now):
            return None
        due = (each for each in self.queue if each.due <= now)
        return max(due, key=_spare, default=None)

    @property
    def _has_room(self) -> bool:
        if not self._troubled:  # a conflict is no sign of trouble
            return True
        return self.running < int(self._window) and not self._held

    def _next_ready(self, now: float) -> Ticket | None:
        """The first; but nobody's last replay is for finding out whether there is room."""
        ready = (each for each in self.queue if each.early or each.due <= now)
        if not self._since_refusal:
            return max(ready, key=_spare, default=None)
        first = next(ready, None)
        if first is None or first.spare or self._since_refusal >= self._window:
            return first
        return next((each for each in ready if each.spare), first)

    def _next_probe(self, now: float) -> float:
        """When somebody may be sent to find out, where the window has no room."""
        if self.running:
            known = self.running < int(self._proven) and self._is_full
            return self._last_probe + PROBE_SECONDS if known else self._last_let_in + _STALL
        if self._must_ping():
            hangs = math.inf if self._pinging is None else self._pinging + PING_SECONDS
            doubted = max(self._last_let_in, self._since or now) + PING_SECONDS
            return max(min(hangs, doubted), self._last_probe + PROBE_SECONDS)
        return -math.inf if len(self.queue) == 1 else self._last_probe + PROBE_SECONDS

    def _must_ping(self) -> bool:
        return self._pings and self._since is not None and bool(self.queue)

    def _next_alarm(self, now: float) -> float:
        """When there is something to do that no completion tells of."""
        if self._must_ping() and self._pinging is None:
            return self._last_probe + PROBE_SECONDS
        probe = now if self._has_room else self._next_probe(now)
        return probe if probe > now else min(each.due for each in self.queue)

    def _open(self) -> None:
        """The first success: what is to follow at once, and how the window grows from there."""
        if self._is_full:  # and now one got in
            self._window, self._step = 1.0, _EAGERNESS
        else:
            self._window = max(1.0, min(self._proven or _OPENING, _OPENING))
            self._step = _EAGERNESS / self._proven if self._proven else math.inf
        self._clean = 0.0
        self._since, self._held = None, False

    def _refused(self) -> None:
        """The server had no connection for one that was let in: what runs besides is what works."""
        works = float(self.running)
        if works >= int(self._proven):
            self._proven = works + _SURE
        else:  # others have taken it, or the server has not let go of an earlier one yet
            self._proven = max(works, self._proven * (1.0 - _DOUBT))
        self._window = min(self._window, max(works, self._window * (1.0 - _SHRINK)))
        self._clean = 0.0
        self._step = _EAGERNESS / max(1.0, self._window)
        if self._window >= 1:
            self._trust /= 2.0
        if not self.running:
            self._window = 0.0
        self._since_refusal = 0
        self._held = True

    def _grow(self) -> None:
        """One was let in, and worked, while the window was full."""
        if self.running > int(self._window):
            self._window = float(self.running)
        elif self._window < int(self._proven) and not self._is_full:
            self._window += 1.0
        else:
            self._window += min(1.0, self._step / self._window)
            self._clean += 1.0
            if self._clean >= self._window:
                self._clean = 0.0
                self._step *= 2.0
                self._proven = max(self._proven, int(self._window) + _SURE)

    def _measure(self, now: float) -> None:
        if self._last_success is not None and now > self._last_success:
            seconds = now - self._last_success
            old = 1.0 / self._rate if self._rate else seconds
            self._rate = 1.0 / (_MEMORY * old + (1.0 - _MEMORY) * seconds)
        self._last_success = now


def _arrived(ticket: Ticket) -> float:
    return ticket.arrived


def _spare(ticket: Ticket) -> int:
    return ticket.spare
