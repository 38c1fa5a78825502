"""Waiting rooms before a simulated server: what they find out, and how well it is used."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from retrymw._core.room import Room
from retrymw._core.ticket import Ticket
from tests.core.helpers import failure

ROUTE = "GET /orders/*"
DEADLINE = 10.0
MAX_REPLAYS = 5
WAITS = (0.05, 0.15, 0.45, 1.35, 4.0)
FULL = failure("too-many-connections", "connect")
GONE = failure("disconnection", "connect")
LOST = failure("disconnection", "execute")


class Request(Ticket):
    """A request of a client, which sends the next one when this one is answered."""

    __slots__ = ("again", "attempts", "process", "room", "told")

    def __init__(self, process, now):
        super().__init__(now, now + DEADLINE, MAX_REPLAYS)
        self.process, self.attempts = process, 0
        self.room = None  # where it has a place
        self.told = None  # the alarm that its shell obeys; a number, which is new for each


class Server:
    """A database with so many connections, and web processes with a waiting room each.

    A request has its connection for `hold` seconds, give or take.
    Events are a heap of ``(time, order, function, arguments)``.
    """

    def __init__(self, *, limit=20, hold=0.1, processes=1, pings=False, seed=1):
        self.random = random.Random(seed)
        self.limit, self.hold, self.pings = limit, hold, pings
        self.now, self.events, self.order = 0.0, [], itertools.count()
        self.used = self.refused = self.tries = 0
        self.down = False
        self.rooms = [None] * processes  # a calm one is none
        self.answered = [[] for _ in range(processes)]  # (when, how long it took)
        self.lost = []

    def after(self, seconds, function, *args):
        heapq.heappush(self.events, (self.now + seconds, next(self.order), function, args))

    def clients(self, count, *, until):
        """So many clients, one request after the other, a millisecond between them."""
        self.until = until
        for each in range(count):
            self.after(self.random.random() * 0.01, self.arrive, each % len(self.rooms), True)

    def requests(self, per_second, *, until):
        """Requests at random."""
        self.until, at = until, 0.0
        while (at := at + self.random.expovariate(per_second)) < until:
            self.after(at, self.arrive, self.random.randrange(len(self.rooms)), False)

    def run(self):
        while self.events:
            self.now, _, function, args = heapq.heappop(self.events)
            function(*args)
        assert self.used == 0
        assert all(room is None or room.is_calm(self.now + 2.0) for room in self.rooms)
        return self

    # A request.

    def arrive(self, process, again):
        request = Request(process, self.now)
        request.again = again
        room = self.room(process)
        if room is not None and room.concerns(ROUTE):
            request.room = room
            self.wake(room, room.arrive(self.now, request), request)
        else:
            self.attempt(request)

    def room(self, process):
        room = self.rooms[process]
        if room is not None and room.is_calm(self.now):
            room = self.rooms[process] = None
        return room

    def attempt(self, request):
        request.attempts += 1
        self.tries += 1
        assert request.attempts <= 1 + MAX_REPLAYS, "G2"
        if self.down:
            self.after(0.001, self.fail, request, GONE)
        elif self.used >= self.limit:
            self.refused += 1
            self.after(0.001, self.fail, request, FULL)
        else:
            self.used += 1
            self.after(self.hold * self.random.uniform(0.95, 1.05), self.finish, request)

    def finish(self, request):
        self.used -= 1
        if self.down:
            self.fail(request, LOST)
            return
        self.answered[request.process].append((self.now, self.now - request.arrived))
        managed = request if request.room is not None else None
        room = request.room or self.room(request.process)
        if room is not None:
            self.wake(room, room.worked(self.now, managed))
        self.next(request)

    def fail(self, request, failed):
        room = self.room(request.process)
        if room is None:
            room = self.rooms[request.process] = Room(pings=self.pings)
        if request.room not in (None, room):
            self.wake(request.room, request.room.leave(self.now, request))
        request.room = room
        request.spare = MAX_REPLAYS - request.attempts
        room.failed(self.now, failed, ROUTE, request)
        if request.attempts > MAX_REPLAYS:
            self.lost.append("exhausted")
            self.wake(room, room.leave(self.now, request))
            self.next(request)
            return
        wait = WAITS[request.attempts - 1] + self.random.random() * 0.05
        self.wake(room, room.wait(self.now, request, self.now + wait), request)

    def next(self, request):
        if request.again and self.now < self.until:
            self.after(0.001, self.arrive, request.process, True)

    # The shells.

    def wake(self, room, woken, *more):
        for request in dict.fromkeys([*woken, *more]):
            request.told = next(self.order)
            self.after(0.0002, self.look, room, request, request.told)

    def look(self, room, request, alarm):
        """Its shell has been woken, or its alarm has gone off."""
        if request.told != alarm:
            return
        request.told = None
        if request.state == "waiting":
            woken = room.tick(self.now, request)
            self.wake(room, [each for each in woken if each is not request])
        if request.state == "running":
            self.attempt(request)
        elif request.state == "over":
            self.lost.append("deadline")
            self.next(request)
        else:
            if room.ping_due(self.now, request):
                self.after(0.001, self.ping, room)
            request.told = next(self.order)
            pause = max(0.0, room.alarm(self.now, request) - self.now)
            self.after(pause, self.look, room, request, request.told)

    def ping(self, room):
        self.tries += 1
        answered = not self.down and self.used < self.limit
        self.wake(room, room.pinged(self.now, answered=answered))

    # What came of it.

    def share(self, process, since=0.0):
        return sum(when >= since for when, _ in self.answered[process])

    def used_share(self, since=0.0):
        """Of what an ideal queue before the server would have answered until the clients stop."""
        answered = sum(since <= when < self.until for times in self.answered for when, _ in times)
        return answered / (self.limit / self.hold * (self.until - since))

    def refusals(self):
        """Per request that was answered."""
        return self.refused / sum(map(len, self.answered))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pings", [False, True], ids=["probes", "pings"])
def test_one_room_finds_the_limit(pings, seed):
    """G9: 200 clients, 20 connections: all are answered, in their turn, and no slot is idle."""
    server = Server(pings=pings, seed=seed)
    server.clients(200, until=8.0)
    server.run()
    assert server.lost == []
    assert server.used_share() >= 0.95
    assert server.used_share(since=1.0) >= 0.97
    assert server.refusals() <= 0.1
    times = sorted(took for when, took in server.answered[0] if 2.0 <= when < 8.0)
    assert times[int(len(times) * 0.99)] <= 1.25 * times[len(times) // 2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("processes", "least", "most"), [(2, 0.3, 0.3), (4, 0.1, 0.5)])
def test_rooms_share_a_limit(processes, least, most, seed):
    """Each finds its share without knowing of the others: all are answered, no slot is idle."""
    server = Server(processes=processes, seed=seed)
    server.clients(200, until=16.0)
    server.run()
    assert server.lost == []
    assert server.used_share(since=1.0) >= 0.97
    assert server.refusals() <= most
    shares = [server.share(process, since=8.0) for process in range(processes)]
    assert min(shares) >= least * sum(shares)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pings", [False, True], ids=["probes", "pings"])
def test_outage(pings, seed):
    """G9: a restart of 2.5 s under 50 requests a second: all answered, soon, at a low load."""
    server = Server(hold=0.005, pings=pings, seed=seed)
    tried = []

    def stop():
        server.down = True
        tried.append(server.tries)

    def start():
        server.down = False
        tried.append(server.tries)

    server.after(1.0, stop)
    server.after(3.5, start)
    server.requests(50, until=5.0)
    server.run()
    assert server.lost == []
    before, after = tried
    assert after - before <= 25 * 2.5
    (times,) = server.answered
    backlog = [when for when, took in times if when - took < 3.5 <= when]
    assert len(backlog) > 100
    assert max(backlog) - 3.5 <= 0.15
