"""The waiting room: where exchanges wait for one database, as a machine without I/O.

Rules
=====

1. No more are let in than the window has room for; one, while nothing is known to work.
2. First come, first served, by when the request arrived: who fails again gets its old place back.
   But where it is not known whether there is room, who has most replays left finds out.
3. What lets the next one in is that one has come out and worked. Clocks do so only where nothing
   comes out: while the database is gone, or in a shortage that others have caused.
4. Nobody waits past its deadline.
5. A request that waits alone, where nothing pings, is never called later than its own wait says.
6. A conflict is no sign of trouble: who has met one waits its own wait, and nobody else does.
7. A calm room knows nothing and costs nothing.

Theory of operation
===================

A shell owns one room per database, and tells it what becomes of the runs of its app. A ticket
stands for a request in the room. Every method answers with the tickets that something has changed
for; the shell wakes these, and looks at their state.

**Window.** How many tickets may run at once; see ``window.py``. A window that is smaller than what
is proven is tried every ``PROBE_SECONDS``.

**Probe.** A lost connection shuts the window; so does a refusal when nothing else runs. Then one at
a time finds out, a ping if the database has one, else a waiting ticket whose own wait is over. The
first that works opens the window. A probe that takes long must not keep the others out for ever, so
after ``_STALL`` seconds without anyone let in, one more goes; and what a ping says is doubted every
``PING_SECONDS``, by a ticket.

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
from typing import Any, Final

from retrymw._core.failure import Failure
from retrymw._core.routes import Routes
from retrymw._core.ticket import RoomSnapshot, RoomState, Ticket
from retrymw._core.window import Window

__all__ = ["Room"]

# Seconds between two probes: 22 per second and process, whatever the load.
PROBE_SECONDS: Final = 0.045
PING_SECONDS: Final = 1.0
_STALL: Final = 0.5
_QUIET: Final = 1.0  # seconds without a failure, and nobody waits: calm
_MEMORY: Final = 0.9  # of the service rate, per success
_LONGEST_ADVICE: Final = 60.0


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
        "_is_full",
        "_last_failure",
        "_last_let_in",
        "_last_probe",
        "_last_success",
        "_leader",
        "_pinged_open",
        "_pinging",
        "_pings",
        "_rate",
        "_since",
        "_troubled",
        "database",
        "failure",
        "leaving",
        "queue",
        "routes",
        "running",
        "shut",
        "window",
    )

    def __init__(self, database: Any = None, *, pings: bool = False) -> None:
        self.database = database
        self.queue: list[Ticket] = []
        self.running = self.leaving = 0
        self.shut = False
        self.failure: Failure | None = None
        self.routes = Routes()
        self.window = Window()
        self._troubled = False  # by something else than conflicts,
        self._is_full = False  # the last time by too many connections
        self._since: float | None = None  # since when nothing is known to work
        self._last_failure = self._last_probe = self._last_let_in = -math.inf
        self._last_success: float | None = None
        self._rate = 0.0  # successes per second
        self._leader: Ticket | None = None
        self._alarm = math.inf
        self._pings = pings
        self._pinging: float | None = None  # since when
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
                self.window.refused(self.running)
        elif failure.kind == "disconnection":
            self.shut = self.shut or ran or failure.phase == "connect"
            self.window.shut()
        if failure.kind != "conflict":
            self._troubled = True
            self._is_full = failure.kind == "too-many-connections"
            if self._since is None and self.window.size < 1:
                self._since = now
            if ran:
                self._last_probe = now
                if self._pinged_open:
                    self._pings = self._pinged_open = False  # what pings is not what the app needs
        elif ran:
            self._last_probe = -math.inf  # it has got an answer

    def wait(self, now: float, ticket: Ticket, due: float) -> list[Ticket]:
        """What the ticket did is undone, and it waits: ``due`` is when its own wait is over."""
        self.leaving -= 1
        ticket.due = due
        return self._queue(now, ticket)

    def arrive(self, now: float, ticket: Ticket) -> list[Ticket]:
        """A new request waits its turn; it may be let in at once."""
        ticket.due = max(now, self._last_probe + PROBE_SECONDS)
        return self._queue(now, ticket)

    def worked(self, now: float, ticket: Ticket | None, *, sure: bool = True) -> list[Ticket]:
        """A run of the app is over, and the database did its part.

        ``ticket`` is None for a request that was not in the room, though its route has failed. Who
        is not ``sure`` is believed when nothing has failed for a while.
        """
        if ticket is not None and not sure and now < self._last_failure + _QUIET:
            return self.leave(now, ticket)
        self._measure(now)
        window = self.window
        if ticket is not None:
            window.worked(self.running, wanted=bool(self.queue), full=self._is_full)
        elif self.shut or window.size < 1:
            window.makes_room()
        if window.size >= 1:
            self._since = None
        self._pinged_open = False
        return self._let_in(now) if ticket is None else self.leave(now, ticket)

    def answered(self, now: float, ticket: Ticket) -> list[Ticket]:
        """A run of the app has begun to answer, and goes on, maybe for long.

        It has worked, if the database was gone. In a shortage its connection has to be back.
        """
        return [] if self._is_full else self.worked(now, ticket)

    def leave(self, now: float, ticket: Ticket) -> list[Ticket]:
        """The ticket is not in the room any more, whatever it was doing there."""
        if ticket.state == "running":
            self.running -= 1
            self.window.held = False
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
        elif self.window.size < 1:
            self.window.open(full=self._is_full)
            self._since = None
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
        state: RoomState = "recovering"
        if not self._troubled or self.is_calm(now):
            state = "calm"
        elif self._is_full:
            state = "full"
        elif self._since is not None:
            state = "gone"
        return RoomSnapshot(
            self.database,
            state,
            int(self.window.size),
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
        return not self._troubled or self.window.has_room(self.running)

    def _next_ready(self, now: float) -> Ticket | None:
        """The first; but nobody's last replay is for finding out whether there is room."""
        ready = (each for each in self.queue if each.early or each.due <= now)
        successes = self.window.successes
        if not successes:
            return max(ready, key=_spare, default=None)
        first = next(ready, None)
        if first is None or first.spare or successes >= self.window.size:
            return first
        return next((each for each in ready if each.spare), first)

    def _next_probe(self, now: float) -> float:
        """When somebody may be sent to find out, where the window has no room."""
        if self.running:
            known = self._is_full and self.running < int(self.window.proven)
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
