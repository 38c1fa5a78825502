"""The waiting room, rule by rule."""

from __future__ import annotations

import pytest

from retrymw._core import room as module
from retrymw._core import window
from retrymw._core.room import PING_SECONDS, PROBE_SECONDS, Room
from retrymw._core.ticket import Ticket
from tests.core.helpers import failure

QUIET, STALL = module._QUIET, module._STALL
OPENING = window._OPENING
ROUTE = "GET /orders/*"
FAR = 1000.0  # a deadline that nobody meets
LOST = failure("disconnection", "execute")
NO_SERVER = failure("disconnection", "connect")
FULL = failure("too-many-connections", "connect")
CONFLICT = failure("conflict", "execute")


class Rooms:
    """A room, a clock that it is told, and a database that says `answer` to a ping."""

    def __init__(self, *, pings=False, answer=False):
        self.room = Room("the database", pings=pings)
        self.now = 100.0
        self.answer = answer
        self.pings = []  # when

    def ticket(self, *, arrived=None, deadline=FAR, spare=5):
        return Ticket(self.now if arrived is None else arrived, deadline, spare)

    def fail(self, failed, ticket=None, **more):
        """A run fails; it is not undone yet."""
        ticket = self.ticket(**more) if ticket is None else ticket
        self.room.failed(self.now, failed, ROUTE, ticket)
        return ticket

    def queue(self, failed, ticket=None, *, wait=0.0, **more):
        """A run fails, is undone, and waits."""
        ticket = self.fail(failed, ticket, **more)
        self.room.wait(self.now, ticket, self.now + wait)
        return ticket

    def arrive(self, **more):
        ticket = self.ticket(**more)
        self.room.arrive(self.now, ticket)
        return ticket

    def works(self, ticket=None):
        return self.room.worked(self.now, ticket)

    def pass_time(self, seconds, waiting):
        """Let the clock run; those who wait obey their alarms, and ping when they are to."""
        end = self.now + seconds
        for _ in range(10_000):
            for each in waiting:
                if self.room.ping_due(self.now, each):
                    self.pings.append(self.now)
                    if self.answer != "hangs":
                        self.room.pinged(self.now, answered=self.answer)
            alarms = {
                each: self.room.alarm(self.now, each) for each in waiting if each.state == "waiting"
            }
            if not alarms or min(alarms.values()) > end:
                break
            first = min(alarms, key=alarms.get)
            self.now = max(self.now, alarms[first])
            self.room.tick(self.now, first)
        else:
            raise AssertionError("the alarms never end")
        self.now = end

    def window(self):
        return self.room.snapshot(self.now).window

    def leader(self, waiting):
        """Who was told to come back before its deadline."""
        leaders = [each for each in waiting if self.room.alarm(self.now, each) < each.deadline]
        assert len(leaders) <= 1
        return leaders[0] if leaders else None


@pytest.fixture
def rooms():
    return Rooms()


def states(tickets):
    return [ticket.state for ticket in tickets]


def full(rooms, *, window, waiting):
    """A room in a shortage that let `window` requests in, while `waiting` others wait."""
    queue = [rooms.queue(FULL, arrived=50.0 + at, wait=0.3) for at in range(window + waiting)]
    for _ in range(window):
        rooms.works()
    assert rooms.window() == window
    assert states(queue) == ["running"] * window + ["waiting"] * waiting
    return queue


def gone(rooms, *, waiting, **more):
    """A room whose database is gone, with requests that wait and could try by now."""
    queue = [
        rooms.queue(NO_SERVER, arrived=50.0 + at, wait=PROBE_SECONDS, **more)
        for at in range(waiting)
    ]
    rooms.now += PROBE_SECONDS / 2
    assert states(queue) == ["waiting"] * waiting
    return queue


def probe(rooms, queue):
    """Who finds out; the window is shut."""
    rooms.pass_time(PROBE_SECONDS, queue)
    (one,) = [each for each in queue if each.state == "running"]
    return one


# The window.


def test_nothing_is_let_in_while_nothing_is_known_to_work(rooms):
    """G9: after the first refusals the window is shut: all wait."""
    queue = [rooms.queue(FULL, wait=0.3) for _ in range(10)]
    assert states(queue) == ["waiting"] * 10
    assert rooms.window() == 0


def test_each_that_works_besides_opens_the_window_by_one(rooms):
    """What was in flight when the room opened is what works: each of them lets one in."""
    queue = [rooms.queue(FULL, wait=0.3) for _ in range(10)]
    for works in range(1, 6):
        assert queue[works - 1] in rooms.works()
        assert rooms.window() == works
        assert states(queue) == ["running"] * works + ["waiting"] * (10 - works)


def test_completion_lets_the_next_one_in(rooms):
    """G9: what lets one in is that one has come out and worked, not a clock."""
    queue = full(rooms, window=3, waiting=3)
    assert queue[3] in rooms.works(queue[1])
    assert states(queue)[:4] == ["running", "over", "running", "running"]
    assert queue[5].state == "waiting"  # the window may have grown, by one
    assert rooms.room.running == rooms.window()


def test_window_grows_while_all_works(rooms):
    """A server has room again when others have left it: the window looks for it."""
    queue = full(rooms, window=2, waiting=1000)
    for _ in range(60):
        rooms.works(next(each for each in queue if each.state == "running"))
    assert 2 + 2 < rooms.window() < 2 + 60
    assert rooms.room.running == rooms.window()


def test_window_does_not_grow_without_need(rooms):
    """G9: where fewer want in than may, their successes prove nothing of a larger window."""
    queue = full(rooms, window=5, waiting=0)
    rooms.works(queue[0])
    for _ in range(100):
        rooms.works(rooms.arrive())
    assert rooms.window() == 5


def test_window_grows_faster_the_longer_nothing_is_refused(rooms):
    """A limit that others have lifted is found soon; just after a refusal, it goes slowly."""
    queue = full(rooms, window=20, waiting=1000)
    rooms.queue(FULL, queue[0], wait=9.0)
    grown = []
    for _ in range(4):
        before = rooms.window()
        for _ in range(60):
            rooms.works(next(each for each in queue if each.state == "running"))
        grown.append(rooms.window() - before)
    assert 1 <= grown[0] < grown[1] < grown[3]


def test_after_a_refusal_newcomers_count_for_less(rooms):
    """Where others share the server, what worked in the beginning may be theirs by now."""
    queue = full(rooms, window=8, waiting=20)
    rooms.queue(FULL, queue[0], wait=9.0)
    before = rooms.window()
    for _ in range(4):
        rooms.works()
    assert before < rooms.window() < before + 4
    rooms.works(queue[1])
    before = rooms.window()
    for _ in range(4):
        rooms.works()
    assert rooms.window() == before + 4


def test_refusal_shrinks_the_window(rooms):
    """A refusal shrinks the window; the one that was refused does not push another one out."""
    queue = full(rooms, window=5, waiting=5)
    rooms.fail(FULL, queue[0])
    assert rooms.window() == 4
    assert rooms.room.running == 4
    rooms.room.wait(rooms.now, queue[0], rooms.now + 0.3)
    assert states(queue) == ["waiting"] + ["running"] * 4 + ["waiting"] * 5


def test_window_is_not_less_than_what_runs(rooms):
    """However many are refused at once, the window does not shrink below what works besides."""
    queue = full(rooms, window=10, waiting=0)
    for each in queue[:6]:
        rooms.fail(FULL, each)
        assert rooms.room.running <= rooms.window() < 10
    for _ in range(100):
        rooms.fail(FULL, rooms.arrive())
    assert rooms.window() >= rooms.room.running == 4


def test_refusal_when_nothing_else_runs_shuts_the_window(rooms):
    """G9: what runs besides is what works; where nothing does, the window is shut."""
    queue = full(rooms, window=5, waiting=0)
    for each in queue[1:]:
        rooms.works(each)
    assert rooms.window() == 5
    rooms.fail(FULL, queue[0])
    assert rooms.window() == 0


@pytest.mark.parametrize("beside", [0, 2])
def test_replays_are_not_burnt_in_a_window_that_is_too_large(rooms, beside):
    """G9: others take the connections, so who is refused waits before it tries again."""
    first, *others = full(rooms, window=10, waiting=0)
    for each in others[beside:]:
        rooms.works(each)
    tries = 0
    while first.state == "running" and tries < 6:
        rooms.queue(FULL, first, wait=0.3)
        tries += 1
    assert tries == 1


def test_refusal_of_a_newcomer_does_not_shrink_the_window(rooms):
    """Who was not let in says nothing of how many may be."""
    full(rooms, window=5, waiting=0)
    rooms.queue(FULL)
    assert rooms.window() == 5


def test_lost_connection_shuts_the_window(rooms):
    """While the database may be gone, one at a time finds out."""
    queue = full(rooms, window=5, waiting=5)
    rooms.fail(LOST, queue[0])
    assert rooms.window() == 0
    for each in queue[1:5]:
        rooms.room.leave(rooms.now, each)
    assert states(queue[5:]).count("running") <= 1


def test_leaving_without_success_does_not_open_the_window(rooms):
    """A client that goes away says nothing of the database; its place is given on."""
    queue = full(rooms, window=2, waiting=2)
    rooms.room.leave(rooms.now, queue[0])
    assert rooms.window() == 2
    assert states(queue) == ["over", "running", "running", "waiting"]


# The order.


def test_first_come_first_served(rooms):
    """By when the requests arrived, and not by when they failed."""
    late, early, middle = (rooms.queue(FULL, arrived=at, wait=0.3) for at in (3.0, 1.0, 2.0))
    rooms.works()
    assert states([early, middle, late]) == ["running", "waiting", "waiting"]
    rooms.works(early)
    assert middle.state == "running"


def test_who_fails_again_has_its_old_place_back(rooms):
    """The second failure does not send anybody to the end of the queue."""
    queue = full(rooms, window=1, waiting=5)
    rooms.queue(CONFLICT, queue[0], wait=0.0)
    assert queue[0].state == "running"
    assert states(queue[1:]) == ["waiting"] * 5


def test_new_requests_wait_behind_the_others(rooms):
    """G9: newcomers do not overtake those who wait."""
    queue = full(rooms, window=1, waiting=2)
    newcomer = rooms.arrive()
    rooms.room.leave(rooms.now, queue[0])
    assert states([queue[1], newcomer]) == ["running", "waiting"]
    rooms.room.leave(rooms.now, queue[1])
    assert states([queue[2], newcomer]) == ["running", "waiting"]
    rooms.room.leave(rooms.now, queue[2])
    assert newcomer.state == "running"


def test_new_request_is_let_in_where_there_is_room(rooms):
    """A room that still remembers the shortage doesn't hold up what the window has room for."""
    queue = full(rooms, window=2, waiting=0)
    rooms.works(queue[0])
    assert rooms.arrive().state == "running"
    assert rooms.arrive().state == "waiting"


def test_after_a_refusal_whoever_can_best_afford_the_next_one_goes(rooms):
    """Nobody's last replay is for finding out where the limit is."""
    queue = full(rooms, window=2, waiting=3)
    for each, spare in zip(queue[2:], (0, 3, 3), strict=True):
        each.spare = spare
    queue[0].spare = 1
    rooms.fail(FULL, queue[0])
    rooms.room.wait(rooms.now, queue[0], rooms.now + 0.3)
    rooms.room.leave(rooms.now, queue[1])
    assert states(queue) == ["waiting", "over", "waiting", "running", "waiting"]
    rooms.works(queue[3])
    assert queue[0].state == "running"  # what works restores the order


# The probe.


def test_one_at_a_time_finds_out(rooms):
    """G9: while the database is gone one waiter tries, and PROBE_SECONDS later the next one."""
    queue = gone(rooms, waiting=10)
    one = probe(rooms, queue)
    rooms.queue(NO_SERVER, one, wait=9.0)
    failed_at = rooms.now
    rooms.pass_time(PROBE_SECONDS * 0.99, queue)
    assert states(queue) == ["waiting"] * 10
    rooms.pass_time(PROBE_SECONDS * 0.02, queue)
    assert states(queue).count("running") == 1
    assert rooms.now - failed_at < PROBE_SECONDS * 1.02


def test_load_of_an_outage_does_not_grow_with_the_waiters(rooms):
    """G9: 1,000 who wait try no more often than ten do."""

    def tries_in(seconds, waiting):
        own = Rooms()
        queue = [own.queue(NO_SERVER, spare=10**6) for _ in range(waiting)]
        tries, end = 0, own.now + seconds
        while own.now < end:
            own.pass_time(PROBE_SECONDS / 4, queue)
            for each in queue:
                if each.state == "running":
                    tries += 1
                    own.queue(NO_SERVER, each)
        return tries

    few, many = tries_in(2.0, 10), tries_in(2.0, 1000)
    assert few == many
    assert 0.7 / PROBE_SECONDS < many / 2.0 <= 1.01 / PROBE_SECONDS + 0.5


def test_probe_is_the_one_with_the_most_replays_left(rooms):
    """Of those whose own wait is over, the one that can best afford to fail finds out."""
    queue = gone(rooms, waiting=4)
    for each, spare in zip(queue, (1, 4, 5, 5), strict=True):
        each.spare = spare
    assert probe(rooms, queue) is queue[2]


def test_nobody_finds_out_before_its_own_wait_is_over(rooms):
    """The window is shut: nobody is called early."""
    queue = [rooms.queue(NO_SERVER, wait=wait) for wait in (3.0, 2.0)]
    rooms.pass_time(1.9, queue)
    assert states(queue) == ["waiting", "waiting"]
    rooms.pass_time(0.2, queue)
    assert states(queue) == ["waiting", "running"]


def test_new_request_may_find_out(rooms):
    """An arrival has all of its replays left: it is a good probe, though not at once."""
    queue = gone(rooms, waiting=2)
    one = probe(rooms, queue)
    for each in queue:
        each.spare = 1
    rooms.queue(NO_SERVER, one, wait=9.0)
    newcomer = rooms.arrive()
    assert newcomer.state == "waiting"
    assert probe(rooms, [*queue, newcomer]) is newcomer


@pytest.mark.parametrize("failed", [LOST, NO_SERVER, FULL, CONFLICT])
@pytest.mark.parametrize("wait", [0.0, 0.05, 3.0])
def test_lone_waiter_is_called_when_its_own_wait_is_over(rooms, failed, wait):
    """A request that waits alone is called when its policy says, not earlier and not later."""
    lone = rooms.queue(failed, wait=wait)
    for _ in range(3):
        if wait:
            rooms.pass_time(wait * 0.99, [lone])
            assert lone.state == "waiting"
            rooms.pass_time(wait * 0.02, [lone])
        assert lone.state == "running"
        rooms.queue(failed, lone, wait=wait)


def test_first_success_of_a_probe_lets_others_in(rooms):
    """G9: where it is not known how many work at once, a few are let in, not all."""
    queue = gone(rooms, waiting=100)
    rooms.works(probe(rooms, queue))
    assert rooms.window() == OPENING
    assert states(queue).count("running") == OPENING


def test_recovery_grows_by_each_success(rooms):
    """Slow start: each that works lets two in, until a refusal says where the end is."""
    queue = gone(rooms, waiting=200)
    rooms.works(probe(rooms, queue))
    for works in range(1, 20):
        rooms.works(next(each for each in queue if each.state == "running"))
        assert rooms.window() == OPENING + works
    running = [each for each in queue if each.state == "running"]
    rooms.queue(FULL, running[0])
    assert rooms.window() == OPENING + 18


def test_recovery_remembers_what_worked(rooms):
    """After a lost connection the window goes back, quickly, to what it was, and no further."""
    queue = full(rooms, window=3, waiting=100)
    rooms.queue(LOST, queue[0], wait=0.0)
    for each in queue[1:3]:
        rooms.room.leave(rooms.now, each)
    rooms.works(probe(rooms, queue))
    assert rooms.window() == 3


def test_recovery_from_a_refusal_begins_with_one(rooms):
    """A server that was full, and lets one in, has room for one."""
    queue = [rooms.queue(FULL, wait=PROBE_SECONDS) for _ in range(10)]
    rooms.works(probe(rooms, queue))
    assert rooms.window() == 1
    assert states(queue).count("running") == 1


def test_slow_probe_does_not_keep_the_others_out(rooms):
    """A probe that hangs is joined by one more each time nobody was let in for a while."""
    queue = gone(rooms, waiting=5)
    probe(rooms, queue)
    rooms.pass_time(STALL * 0.9, queue)
    assert states(queue).count("running") == 1
    rooms.pass_time(STALL * 0.2, queue)
    assert states(queue).count("running") == 2
    rooms.pass_time(STALL, queue)
    assert states(queue).count("running") == 3


def test_full_window_that_does_not_move_is_exceeded_by_one(rooms):
    """Requests that take very long do not keep the others out for ever."""
    queue = full(rooms, window=2, waiting=5)
    rooms.pass_time(STALL * 1.01, queue)
    assert states(queue) == ["running"] * 3 + ["waiting"] * 4
    assert rooms.window() == 2


# The ping.


def test_ping_goes_instead_of_the_waiting():
    """Nobody's replays are spent on finding out where a ping can; 20 pings a second or so."""
    rooms = Rooms(pings=True)
    queue = gone(rooms, waiting=50)
    seconds = 0.9 * PING_SECONDS
    rooms.pass_time(seconds, queue)
    assert states(queue) == ["waiting"] * 50
    assert 0.9 / PROBE_SECONDS < len(rooms.pings) / seconds <= 1.0 / PROBE_SECONDS + 2


def test_one_ping_at_a_time():
    """The one who watches the clock pings, once."""
    rooms = Rooms(pings=True)
    queue = gone(rooms, waiting=5)
    assert [rooms.room.ping_due(rooms.now, each) for each in queue].count(True) == 1
    assert [rooms.room.ping_due(rooms.now, each) for each in queue].count(True) == 0


def test_first_ping_is_at_once():
    """It may have been a single connection that broke: a healthy database has nobody wait."""
    rooms = Rooms(pings=True)
    lone = rooms.queue(LOST, wait=3.0)
    assert rooms.room.ping_due(rooms.now, lone)
    assert lone in rooms.room.pinged(rooms.now, answered=True)
    assert lone.state == "running"


def test_ping_that_is_answered_opens_the_window():
    """What is known to be there is used; by some at first."""
    rooms = Rooms(pings=True, answer=True)
    queue = gone(rooms, waiting=100)
    rooms.pass_time(PROBE_SECONDS, queue)
    assert states(queue) == ["running"] * OPENING + ["waiting"] * (100 - OPENING)
    assert len(rooms.pings) == 1


def test_ping_that_hangs():
    """The waiting find out for themselves, one at a time, when a ping takes too long."""
    rooms = Rooms(pings=True, answer="hangs")
    queue = gone(rooms, waiting=5)
    rooms.pass_time(PING_SECONDS * 0.95, queue)
    assert states(queue) == ["waiting"] * 5
    rooms.pass_time(PROBE_SECONDS + PING_SECONDS * 0.1, queue)
    assert states(queue).count("running") == 1
    rooms.pass_time(STALL * 3, queue)
    assert states(queue).count("running") > 1
    assert len(rooms.pings) == 1, "one that hangs is enough"


def test_ping_that_ends_late_counts():
    """A hanging ping that is answered in the end opens the window all the same."""
    rooms = Rooms(pings=True, answer="hangs")
    queue = gone(rooms, waiting=5)
    rooms.pass_time(PING_SECONDS * 1.2, queue)
    rooms.room.pinged(rooms.now, answered=True)
    assert states(queue) == ["running"] * 5


def test_ping_of_a_leader_that_leaves_is_followed_by_another_one():
    """Whoever pings says how it went, whatever happens; then the next one pings."""
    rooms = Rooms(pings=True, answer="hangs")
    queue = gone(rooms, waiting=2)
    (leader,) = [each for each in queue if rooms.room.ping_due(rooms.now, each)]
    queue.remove(leader)
    rooms.room.leave(rooms.now, leader)
    rooms.room.pinged(rooms.now, answered=False)
    rooms.pass_time(PROBE_SECONDS * 1.1, queue)
    assert len(rooms.pings) == 1


def test_ping_that_says_nothing():
    """A ping with an error of its own is not asked again: the waiting find out for themselves."""
    rooms = Rooms(pings=True, answer=None)
    queue = gone(rooms, waiting=5)
    rooms.pass_time(PROBE_SECONDS, queue)
    assert states(queue).count("running") == 1
    rooms.pass_time(5.0, queue)
    assert len(rooms.pings) == 1


def test_ping_that_lies():
    """A ping that is answered where the app's own work fails is not believed twice."""
    rooms = Rooms(pings=True, answer=True)
    queue = gone(rooms, waiting=20)
    rooms.pass_time(PROBE_SECONDS, queue)
    for each in [each for each in queue if each.state == "running"]:
        rooms.queue(NO_SERVER, each, wait=0.0)
    for _ in range(10):
        rooms.pass_time(PROBE_SECONDS * 1.01, queue)
        rooms.queue(NO_SERVER, next(each for each in queue if each.state == "running"), wait=9.0)
        assert states(queue) == ["waiting"] * 20
    assert len(rooms.pings) == 1


def test_success_makes_a_ping_believed_again():
    """A ping that opened the room rightly is asked again when the database goes once more."""
    rooms = Rooms(pings=True, answer=True)
    queue = gone(rooms, waiting=5)
    rooms.pass_time(PROBE_SECONDS, queue)
    rooms.works(queue[0])
    rooms.answer = False
    for each in queue[1:]:
        rooms.queue(NO_SERVER, each, wait=PROBE_SECONDS)
    rooms.pass_time(1.0, queue)
    assert len(rooms.pings) > 10
    assert states(queue[1:]) == ["waiting"] * 4


def test_only_trouble_is_pinged():
    """A conflict says that the database is there."""
    rooms = Rooms(pings=True)
    lone = rooms.queue(CONFLICT, wait=1.0)
    assert not rooms.room.ping_due(rooms.now, lone)
    rooms.pass_time(1.01, [lone])
    assert lone.state == "running"


def test_open_window_is_not_pinged():
    """G9: what works needs no ping."""
    rooms = Rooms(pings=True)
    queue = full(rooms, window=2, waiting=5)
    rooms.pass_time(STALL / 2, queue)
    assert rooms.pings == []


def test_full_database_is_pinged():
    """A refusal when nothing else runs: the ping finds out when there is room again."""
    rooms = Rooms(pings=True)
    queue = [rooms.queue(FULL, wait=1.0) for _ in range(5)]
    rooms.pass_time(1.0, queue)
    assert states(queue) == ["waiting"] * 5
    rooms.answer = True
    rooms.pass_time(PROBE_SECONDS * 1.1, queue)
    assert states(queue).count("running") == 1


# Conflicts.


def test_conflict_waits_its_own_wait(rooms):
    """A conflict's wait is for others to finish: it is not called early, others pass it."""
    queue = full(rooms, window=2, waiting=1)
    rooms.queue(CONFLICT, queue[0], wait=0.3)
    assert states(queue) == ["waiting", "running", "running"]
    rooms.works(queue[1])
    assert queue[0].state == "waiting"
    rooms.pass_time(0.29, queue)
    assert queue[0].state == "waiting"
    rooms.pass_time(0.02, queue)
    assert queue[0].state == "running"


def test_conflict_says_nothing_of_the_window(rooms):
    """The database is there, and has room."""
    queue = full(rooms, window=2, waiting=0)
    rooms.fail(CONFLICT, queue[0])
    assert rooms.window() == 2


def test_probe_that_meets_a_conflict_is_followed_at_once(rooms):
    """It says that the database is there: nobody need wait PROBE_SECONDS for the next try."""
    queue = gone(rooms, waiting=3)
    rooms.queue(CONFLICT, probe(rooms, queue), wait=9.0)
    assert states(queue).count("running") == 1


def test_conflict_has_no_arrivals_wait(rooms):
    """New requests go to their app at once where nothing but conflicts has failed."""
    rooms.queue(CONFLICT, wait=0.3)
    assert not rooms.room.concerns(ROUTE)


def test_one_broken_connection_has_no_arrivals_wait(rooms):
    """A single connection that breaks under way does not say that the database is gone."""
    rooms.queue(LOST, wait=0.3)
    assert not rooms.room.concerns(ROUTE)


def test_second_broken_connection_has_arrivals_wait(rooms):
    """But a replay whose connection breaks as well does."""
    lone = rooms.queue(LOST)
    rooms.queue(LOST, lone, wait=0.3)
    assert rooms.room.concerns(ROUTE)


@pytest.mark.parametrize("failed", [NO_SERVER, FULL])
def test_arrivals_of_a_failed_route_wait(rooms, failed):
    """G9: those whose route has failed since, and no others."""
    rooms.queue(failed, wait=0.3)
    assert rooms.room.concerns(ROUTE)
    assert not rooms.room.concerns("GET /static")
    assert not rooms.room.concerns("POST /orders/*")


# The leader.


@pytest.mark.parametrize("pings", [False, True])
def test_one_watches_the_clock(pings):
    """No timer for each of those who wait: all but one may sleep until their deadlines."""
    rooms = Rooms(pings=pings)
    queue = gone(rooms, waiting=50)
    assert rooms.leader(queue) is not None


def test_leader_that_leaves_is_followed_by_another_one(rooms):
    """It is woken, to ask for its alarm."""
    queue = gone(rooms, waiting=5)
    while queue:
        leader = rooms.leader(queue)
        assert leader is not None
        woken = rooms.room.leave(rooms.now, leader)
        queue.remove(leader)
        if queue:
            assert rooms.leader(queue) in woken


def test_leader_that_is_let_in_is_followed_by_another_one(rooms):
    """Its turn has come; somebody else watches the clock."""
    queue = gone(rooms, waiting=3)
    leader = rooms.leader(queue)
    for each in queue:
        each.spare = 5 if each is leader else 1
    assert probe(rooms, queue) is leader
    assert rooms.leader([each for each in queue if each is not leader]) is not None


def test_leader_is_woken_when_it_is_to_come_earlier(rooms):
    """Somebody with a shorter wait comes in: the leader's alarm is too late."""
    lone = rooms.queue(NO_SERVER, wait=5.0)
    assert rooms.room.alarm(rooms.now, lone) == rooms.now + 5.0
    second = rooms.fail(NO_SERVER)
    woken = rooms.room.wait(rooms.now, second, rooms.now + 1.0)
    assert lone in woken
    assert min(rooms.room.alarm(rooms.now, each) for each in (lone, second)) == rooms.now + 1.0


def test_leader_is_not_woken_without_need(rooms):
    """G9: 1,000 arrivals do not wake it 1,000 times."""
    queue = gone(rooms, waiting=2)
    queue.append(probe(rooms, queue))
    queue = [each for each in queue if each.state == "waiting"]
    for each in queue:
        rooms.room.alarm(rooms.now, each)
    woken = []
    for _ in range(1000):
        ticket = rooms.ticket()
        woken += rooms.room.arrive(rooms.now, ticket)
    assert woken == []


def test_success_wakes_nobody_who_has_nothing_to_do(rooms):
    """2,000 who wait are not woken to look and wait on: one comes out, one goes in."""
    queue = full(rooms, window=2, waiting=100)
    for each in queue:
        rooms.room.alarm(rooms.now, each)
    assert len(rooms.works(queue[0])) <= 3


# The ends.


def test_nobody_waits_past_its_deadline(rooms):
    """G2: each alarm is before the ticket's deadline; then it is over."""
    queue = [rooms.queue(NO_SERVER, wait=100.0, deadline=rooms.now + at) for at in (1.0, 2.0, 3.0)]
    rooms.pass_time(1.5, queue)
    assert states(queue) == ["over", "waiting", "waiting"]
    rooms.pass_time(1.0, queue)
    assert states(queue) == ["over", "over", "waiting"]
    rooms.pass_time(1.0, queue)
    assert states(queue) == ["over"] * 3
    assert rooms.room.queue == []


@pytest.mark.parametrize("doing", ["waiting", "running", "leaving"])
def test_who_leaves_is_forgotten(rooms, doing):
    """G6: whatever it did in the room, it counts no more; leaving twice is leaving once."""
    ticket = rooms.queue(NO_SERVER)
    if doing != "running":
        rooms.fail(NO_SERVER, ticket)
    if doing == "waiting":
        rooms.room.wait(rooms.now, ticket, rooms.now + 1.0)
    assert ticket.state == doing
    for _ in range(2):
        rooms.room.leave(rooms.now, ticket)
        assert (rooms.room.running, rooms.room.leaving, rooms.room.queue) == (0, 0, [])
        assert ticket.state == "over"


def test_undoing_is_not_waiting(rooms):
    """G8: who has failed waits only when its connection is back; until then it is not let in."""
    ticket = rooms.fail(FULL)
    rooms.works()
    assert ticket.state == "leaving"
    assert (rooms.room.leaving, rooms.room.queue) == (1, [])
    assert rooms.room.wait(rooms.now, ticket, rooms.now + 1.0) == [ticket]
    assert ticket.state == "running"


def test_calm(rooms):
    """A room is calm when nobody waits, and nothing has failed for a while."""
    lone = rooms.queue(NO_SERVER)
    rooms.now += QUIET * 2
    rooms.fail(NO_SERVER, lone)
    assert not rooms.room.is_calm(rooms.now)
    rooms.room.wait(rooms.now, lone, rooms.now + 9.0)
    rooms.now += QUIET * 1.01
    assert not rooms.room.is_calm(rooms.now)
    rooms.room.leave(rooms.now, lone)
    assert rooms.room.is_calm(rooms.now)
    rooms.fail(NO_SERVER)
    rooms.now += QUIET * 1.01
    assert not rooms.room.is_calm(rooms.now), "it may still hold a connection"


def test_failure_postpones_calm(rooms):
    """The room is kept for QUIET after the last failure, with what it has found out."""
    lone = rooms.queue(NO_SERVER)
    rooms.works(lone)
    rooms.now += QUIET * 0.99
    assert not rooms.room.is_calm(rooms.now)
    rooms.now += QUIET * 0.02
    assert rooms.room.is_calm(rooms.now)


def test_close(rooms):
    """Everybody who waits is told that it is over; who runs may end."""
    queue = full(rooms, window=2, waiting=5)
    assert rooms.room.close() == queue[2:]
    assert states(queue) == ["running"] * 2 + ["over"] * 5
    rooms.works(queue[0])
    assert rooms.room.running == 1
    assert rooms.room.close() == []


def test_alone(rooms):
    """Nothing but its own wait calls who is alone; a ping, or one that runs, might."""
    assert rooms.room.is_empty
    assert not Room(pings=True).is_empty
    lone = rooms.queue(NO_SERVER)
    assert not rooms.room.is_empty
    rooms.fail(NO_SERVER, lone)
    assert rooms.room.is_empty


# What it says.


def test_retry_after_of_an_outage_is_how_long_it_has_lasted(rooms):
    """G10: what has been gone for 20 seconds will be for as long again, give or take."""
    rooms.queue(NO_SERVER, wait=100.0)
    assert rooms.room.retry_after(rooms.now, 2.0) == 2.0
    assert rooms.room.retry_after(rooms.now + 1.0, 2.0) == 2.0
    assert rooms.room.retry_after(rooms.now + 20.0, 2.0) == pytest.approx(20.0)
    assert rooms.room.retry_after(rooms.now + 5000.0, 2.0) <= 120.0


def test_retry_after_of_a_shortage_is_the_queue_at_the_service_rate(rooms):
    """G10: those before have their turn first: 50 of them, ten a second."""
    queue = full(rooms, window=2, waiting=100)
    for at in range(50):
        rooms.now += 0.1
        rooms.works(queue[at])
    waiting = len(rooms.room.queue)
    assert rooms.room.retry_after(rooms.now, 1.0) == pytest.approx((waiting + 1) / 10, rel=0.1)
    assert rooms.room.retry_after(rooms.now, 1.0) < 60.1


def test_retry_after_without_knowledge_is_the_wait(rooms):
    """G10: before anything has worked, and for a conflict, the policy's wait is all there is."""
    rooms.queue(FULL, wait=0.3)
    assert rooms.room.retry_after(rooms.now, 2.0) == 2.0
    other = Rooms()
    other.queue(CONFLICT, wait=0.3)
    assert other.room.retry_after(other.now + 20.0, 2.0) == 2.0


def test_retry_after_of_an_outage_that_is_over(rooms):
    """G10: what works again is not gone any more."""
    lone = rooms.queue(NO_SERVER, wait=0.0)
    rooms.now += 20.0
    rooms.works(lone)
    assert rooms.room.retry_after(rooms.now, 2.0) <= 2.0


def test_snapshot_of_a_shortage(rooms):
    """State, window, who runs, who waits and for how long, and what happened last."""
    full(rooms, window=2, waiting=3)
    shown = rooms.room.snapshot(rooms.now)
    assert (shown.database, shown.state) == ("the database", "full")
    assert (shown.window, shown.running, shown.waiting) == (2, 2, 3)
    assert shown.oldest_wait == rooms.now - 52.0
    assert shown.last_failure is FULL


def test_snapshot_of_an_outage(rooms):
    """The window is 0 while nothing is known to work."""
    gone(rooms, waiting=3)
    shown = rooms.room.snapshot(rooms.now)
    assert (shown.state, shown.window, shown.running, shown.waiting) == ("gone", 0, 0, 3)
    assert shown.last_failure is NO_SERVER


def test_snapshot_of_a_recovery(rooms):
    """It works again, and not all have had their turn."""
    queue = gone(rooms, waiting=20)
    rooms.works(probe(rooms, queue))
    assert rooms.room.snapshot(rooms.now).state == "recovering"


def test_snapshot_when_all_is_well_again(rooms):
    """Nobody waits, and nothing fails: calm."""
    lone = rooms.queue(NO_SERVER)
    rooms.works(lone)
    rooms.now += QUIET * 1.01
    shown = rooms.room.snapshot(rooms.now)
    assert (shown.state, shown.running, shown.waiting, shown.oldest_wait) == ("calm", 0, 0, 0.0)
    assert Room("db").snapshot(0.0).state == "calm"


def test_error_of_a_client_opens_no_window(rooms):
    """A 404 may come before the database was asked; when nothing has failed for long, it counts."""
    rooms.queue(NO_SERVER, wait=FAR)
    for passed, opened in ((PROBE_SECONDS, False), (QUIET, True)):
        rooms.now += passed
        probe = rooms.arrive()
        assert probe.state == "running"
        rooms.room.worked(rooms.now, probe, sure=False)
        assert (rooms.window() > 0) is opened


@pytest.mark.parametrize(("failed", "expected"), [(NO_SERVER, "over"), (FULL, "running")])
def test_answer_that_goes_on(rooms, failed, expected):
    """One that streams keeps nobody out; but in a shortage it has its connection, so its place."""
    rooms.queue(failed, wait=FAR)
    rooms.now += PROBE_SECONDS
    streaming = rooms.arrive()
    assert streaming.state == "running"
    rooms.room.answered(rooms.now, streaming)
    assert streaming.state == expected


def test_conflicts_are_no_trouble_to_be_shown(rooms):
    """A room where there were only conflicts is calm."""
    rooms.queue(CONFLICT, wait=1.0)
    assert rooms.room.snapshot(rooms.now).state == "calm"
