"""All sequences of what can happen in a waiting room, against a model written from its rules."""

from __future__ import annotations

import copy
import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from retrymw._core import room as module
from retrymw._core.room import PING_SECONDS, PROBE_SECONDS, Room
from retrymw._core.ticket import Ticket
from tests.core.helpers import PHASES, failure

QUIET, STALL = module._QUIET, module._STALL
ROUTE = "GET /orders/*"
KINDS = ["too-many-connections"] * 3 + ["disconnection"] * 3 + ["conflict"]
SLACK = 1e-9  # an alarm is set by an addition

failures = st.builds(failure, st.sampled_from(KINDS), st.sampled_from(PHASES))
seconds = st.sampled_from([0.0, 0.001, PROBE_SECONDS / 2, PROBE_SECONDS, 0.2, STALL, 1.0, 3.0])
waits = st.sampled_from([0.0, 0.05, 0.15, 0.45, 1.35, 4.0])
patience = st.sampled_from([10.0, 10.0, 10.0, 2.0, 0.5, 0.1])
spares = st.integers(0, 5)
few = st.integers(1, 4)
picks = st.integers(0, 10**6)
# What the database says to a ping: yes, no, nothing of itself, or not a word.
answers = st.sampled_from([True, False, False, None, "hangs"])


class Request(Ticket):
    """A ticket of the model: `told` is until when its shell sleeps."""

    __slots__ = ("told",)


class Rooms(RuleBasedStateMachine):
    """One room, and the shells of all requests that are in it.

    A shell does what those of retrymw do: once woken, it looks at its state, and if it still waits
    it calls ``tick``, pings if it is to, and sleeps until its alarm. Between being woken and doing
    so anything may happen.
    """

    def __init__(self):
        super().__init__()
        self.now = 100.0
        self.waiting, self.running, self.leaving = [], [], []
        self.awake = []  # woken, and they have not done anything yet
        self.answer = self.troubled = False
        self.hanging = 0  # pings
        self.worked_since_refusal = 1
        self.last_let_in = self.last_failed_probe = self.last_failure = -math.inf

    @initialize(pings=st.booleans(), answer=answers)
    def first(self, pings, answer):
        self.room = Room("db", pings=pings)
        self.answer = answer

    # What the model is told.

    def note(self, woken, by=None):
        """Who was woken, and who was let in; `by` is who is awake already."""
        before = self.waiting
        self.waiting = [each for each in before if each.state == "waiting"]
        let_in = [each for each in woken if each.state == "running" and each not in self.running]
        over = [each for each in before if each.state == "over"]
        assert {*let_in, *over, *self.waiting} == {*before}, "who is let in is woken"
        assert {*over} <= {by}, "nobody else is turned away"
        self.running += let_in
        assert all(each.deadline <= self.now for each in over), "nobody is turned away early"
        awake = dict.fromkeys([*self.awake, *woken])
        self.awake = [each for each in awake if each.state == "waiting"]
        if let_in:
            self.check_let_in(let_in)
            self.last_let_in = self.now

    def check_let_in(self, let_in):
        window, running = self.room.snapshot(self.now).window, len(self.running)
        if not self.troubled:
            assert all(each.early or each.due <= self.now for each in let_in), "a conflict waits"
            return
        if running <= window:
            for at, each in enumerate(let_in):
                left = [each, *let_in[at + 1 :], *self.waiting]
                self.check_order(each, [it for it in left if it.early or it.due <= self.now])
            return
        # Nothing is known to work, or to have room: one finds out.
        known = running <= int(self.room.window.proven)  # a level that has worked, in a shortage
        assert len(let_in) == 1 or (known and running - 1 <= window), "never more than the window"
        one = let_in[-1]
        assert one.due <= self.now, "nobody finds out before its own wait is over"
        others = self.waiting
        due = [each for each in others if each.due <= self.now]
        assert all(one.spare >= each.spare for each in due), "who can best afford it finds out"
        if running > 1:
            stalled = self.now >= self.last_let_in + STALL - SLACK
            again = self.now >= self.last_failed_probe + PROBE_SECONDS - SLACK
            assert stalled or (known and again), "never more than the window"
        elif others:
            assert self.now >= self.last_failed_probe + PROBE_SECONDS - SLACK, "one at a time"

    def check_order(self, one, ready):
        """First come, first served; but nobody's last replay is for finding out a window."""
        first = min(ready, key=lambda each: each.arrived)
        affordable = [each for each in ready if each.spare] or ready
        if self.worked_since_refusal == 0:
            due = [each for each in ready if each.due <= self.now] or ready
            assert one.spare in {max(each.spare for each in those) for those in (ready, due)}
        elif one.arrived != first.arrived:
            assert first.spare == 0
            assert self.worked_since_refusal <= self.room.snapshot(self.now).window
            assert one.arrived == min(each.arrived for each in affordable)

    def request(self, patience, spare):
        ticket = Request(self.now, self.now + patience, spare)
        ticket.told = -math.inf
        return ticket

    # What happens.

    @rule(failed=failures, patience=patience, spare=spares, count=few)
    def newcomers_fail(self, failed, patience, spare, count):
        for _ in range(count):
            self.fail(self.request(patience, spare), failed)

    @precondition(lambda self: self.running)
    @rule(failed=failures, pick=picks, count=few)
    def running_ones_fail(self, failed, pick, count):
        for _ in range(min(count, len(self.running))):
            ticket = self.running.pop(pick % len(self.running))
            ticket.spare -= 1
            self.fail(ticket, failed)
            # A conflict is an answer, after which the next may go at once.
            self.last_failed_probe = self.now if failed.kind != "conflict" else -math.inf
            if failed.kind == "too-many-connections":
                self.worked_since_refusal = 0

    def fail(self, ticket, failed):
        self.room.failed(self.now, failed, ROUTE, ticket)
        self.troubled = self.troubled or failed.kind != "conflict"
        self.last_failure = self.now
        self.leaving.append(ticket)

    @precondition(lambda self: self.leaving)
    @rule(pick=picks, wait=waits, count=few)
    def undone(self, pick, wait, count):
        for _ in range(min(count, len(self.leaving))):
            ticket = self.leaving.pop(pick % len(self.leaving))
            self.enter(ticket)
            self.note(self.room.wait(self.now, ticket, self.now + wait))
            self.start(ticket)

    @precondition(lambda self: self.room.concerns(ROUTE))
    @rule(patience=patience, spare=spares, count=few)
    def arrive(self, patience, spare, count):
        for _ in range(count):
            ticket = self.request(patience, spare)
            self.enter(ticket)
            self.note(self.room.arrive(self.now, ticket))
            self.start(ticket)

    def enter(self, ticket):
        self.waiting.append(ticket)
        self.waiting.sort(key=lambda each: each.arrived)
        ticket.told = -math.inf

    def start(self, ticket):
        """Its shell has said that it waits, and looks whether it has to."""
        if ticket.state == "waiting" and ticket not in self.awake:
            self.awake.append(ticket)

    @precondition(lambda self: self.running)
    @rule(pick=picks, count=few)
    def running_ones_work(self, pick, count):
        for _ in range(min(count, len(self.running))):
            ticket = self.running.pop(pick % len(self.running))
            self.worked_since_refusal += 1
            self.note(self.room.worked(self.now, ticket))
            assert ticket.state == "over"

    @rule(count=few)
    def newcomers_work(self, count):
        for _ in range(count):
            self.note(self.room.worked(self.now, None))

    @precondition(lambda self: self.waiting + self.running + self.leaving)
    @rule(pick=picks, count=few)
    def clients_leave(self, pick, count):
        for _ in range(count):
            everybody = self.waiting + self.running + self.leaving
            if everybody:
                self.leave(everybody[pick % len(everybody)])

    def leave(self, ticket):
        for place in (self.waiting, self.running, self.leaving, self.awake):
            if ticket in place:
                place.remove(ticket)
        self.note(self.room.leave(self.now, ticket))
        assert ticket.state == "over"

    @precondition(lambda self: self.hanging)
    @rule(answered=st.sampled_from([True, False, None]))
    def hanging_ping_ends(self, answered):
        self.hanging -= 1
        self.note(self.room.pinged(self.now, answered=answered))

    # The shells of those who wait.

    @precondition(lambda self: self.awake)
    @rule(pick=picks)
    def shell_runs(self, pick):
        self.run_shell(self.awake[pick % len(self.awake)])

    def run_shell(self, ticket):
        """Woken, or its alarm has gone off."""
        if ticket in self.awake:
            self.awake.remove(ticket)
        self.note(self.room.tick(self.now, ticket), by=ticket)
        if ticket.state == "waiting" and self.room.ping_due(self.now, ticket):
            assert not self.hanging, "one ping at a time"
            if self.answer == "hangs":
                self.hanging += 1
            else:
                self.note(self.room.pinged(self.now, answered=self.answer))
        if ticket.state == "waiting":
            ticket.told = self.room.alarm(self.now, ticket)
            assert ticket.told <= ticket.deadline, "nobody waits past its deadline"

    def run_shells(self):
        for _ in range(1000):
            if not self.awake:
                return
            self.run_shell(self.awake[0])
        raise AssertionError("they wake one another for ever")

    @rule(passed=seconds, answer=answers)
    def time_passes(self, passed, answer):
        self.answer = answer
        self.pass_time(passed)

    def pass_time(self, passed):
        end = self.now + passed
        for _ in range(10_000):
            self.run_shells()
            first = min(self.waiting, key=lambda each: each.told, default=None)
            if first is None or first.told > end:
                break
            self.now = max(self.now, first.told)
            self.run_shell(first)
        else:
            raise AssertionError("the alarms never end")
        self.now = end
        assert all(each.deadline > self.now for each in self.waiting), "nobody waits past its own"

    # Always.

    @invariant()
    def the_room_counts_right(self):
        """Who has left has vanished; nobody is in two places."""
        room = self.room
        assert room.queue == self.waiting
        assert (room.running, room.leaving) == (len(self.running), len(self.leaving))
        assert {each.state for each in self.waiting} <= {"waiting"}
        assert {each.state for each in self.running} <= {"running"}
        assert {each.state for each in self.leaving} <= {"leaving"}
        shown = room.snapshot(self.now)
        assert (shown.running, shown.waiting) == (room.running, len(room.queue))
        assert shown.window >= 0
        assert shown.oldest_wait >= 0.0

    @invariant()
    def no_wakeup_is_lost(self):
        """Whenever there is something to do, somebody is awake, or will be at that time.

        Asked of a copy of the room: everybody looks, just before the first alarm, whether there is
        something to do. While somebody's attempt is being undone its connection is not back yet.
        """
        if not self.waiting or self.awake or self.leaving:
            return
        first = min(each.told for each in self.waiting)
        before = min(first, self.now + 100.0) - SLACK
        if before <= self.now:
            return
        room, waiting = copy.deepcopy((self.room, self.waiting))
        for each in waiting:
            assert not room.ping_due(before, each), "a ping was due before anybody is awake"
            room.tick(before, each)
        assert all(each.state == "waiting" for each in waiting), "let in before anybody is awake"

    @invariant()
    def a_calm_room_holds_nobody(self):
        """Who has left leaves nothing behind; and an empty room gets calm by itself."""
        if self.waiting or self.leaving:
            assert not self.room.is_calm(self.now)
            return
        assert self.room.is_calm(self.now) == (self.now >= self.last_failure + QUIET)
        for name in Room.__slots__:
            value = getattr(self.room, name)
            assert not isinstance(value, Ticket), name
            assert not isinstance(value, list) or not value, name

    @invariant()
    def the_advice_is_sane(self):
        """G10: a number of seconds that is finite and not negative."""
        assert 0.0 <= self.room.retry_after(self.now, 0.5) < 1000.0

    def teardown(self):
        """Nobody starves: when nothing fails any more, everybody has a turn, and soon.

        A ping may still hang; nobody runs long any more. The first own wait that is over calls one,
        and its success calls the others, but for conflicts, who wait their own wait. Who would wait
        past its deadline is turned away then.
        """
        for ticket in [*self.leaving]:
            self.leaving.remove(ticket)
            self.enter(ticket)
            self.note(self.room.wait(self.now, ticket, self.now + 0.1))
            self.start(ticket)
        if self.answer is not None and self.answer != "hangs":
            self.answer = True
        ends = [each.deadline for each in self.waiting if each.due >= each.deadline]
        dues = [each.due for each in self.waiting if each.due < each.deadline]
        late = [each.due for each in self.waiting if not each.early]
        longest = max([self.now, min(dues, default=self.now), *ends, *late])
        limit = longest + PING_SECONDS + STALL + PROBE_SECONDS * 3
        while self.waiting or self.running:
            while self.running:
                self.worked_since_refusal += 1
                self.note(self.room.worked(self.now, self.running.pop(0)))
            self.pass_time(PROBE_SECONDS / 2)
            assert self.now < limit, "somebody starves"
        if hasattr(self, "room"):
            self.a_calm_room_holds_nobody()


Rooms.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestRooms = Rooms.TestCase
