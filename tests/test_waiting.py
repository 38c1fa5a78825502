"""The waiting rooms of a middleware: who waits, who is refused at once, and what is forgotten."""

from __future__ import annotations

import gc
import threading
import weakref

import pymysql
import pytest
import tenacity

from retrymw import RetryPolicy, _waiting
from retrymw._core.exchange import Exchange, Raise, Refuse, Replay, Send
from retrymw._core.policy import Mark, MarkKind
from retrymw._core.room import PROBE_SECONDS
from retrymw._waiting import WaitingRooms
from tests.core.helpers import failure

LONG = 100.0  # seconds, after which any room is calm
NO_SERVER = failure("disconnection", "connect")
FULL = failure("too-many-connections", "connect")
LOST = failure("disconnection", "execute")
LOST_COMMIT = failure("disconnection", "commit")
CONFLICT = failure("conflict", "execute")


class Database:
    """What an adapter is to a waiting room: somebody."""


class Request:
    """What a shell's run of the app is to a waiting room."""

    def __init__(self, rooms, method="GET", path="/orders/17", *, database=None, mark=None):
        self.method, self.path = method, path
        self.request = {"the scope of": path}
        self.started = rooms.now
        self.place = None
        self.failed_database = database
        self.exchange = Exchange(rooms.policy, method, rooms.now)
        self.exchange.mark = mark
        self.woken = 0

    def wake(self):
        self.woken += 1

    @property
    def state(self):
        return self.place and self.place.state


class Rooms:
    """Waiting rooms, and what a shell does with them."""

    def __init__(self, clock, policy, most):
        self._clock = clock
        self.loop = None
        self.policy = policy
        self.rooms = WaitingRooms(policy, lambda request: most, lambda: self.loop)

    @property
    def now(self):
        return self._clock.now

    @now.setter
    def now(self, value):
        self._clock.now = value

    def request(self, *args, **more):
        return Request(self, *args, **more)

    def fail(self, request=None, failed=NO_SERVER, *, loop=None, raised=True, status=None):
        """An attempt fails; it is not undone yet."""
        request = request or self.request()
        self.loop = loop
        command = self.rooms.ended(request, failure=failed, raised=raised, status=status)
        return request, command

    def wait(self, request=None, failed=NO_SERVER, **more):
        """An attempt fails, is undone, and waits if it is to."""
        request, command = self.fail(request, failed, **more)
        if isinstance(command, Replay):
            request.place.wake = request.wake
            self.rooms.wait(request.place, command.after)
        else:
            self.rooms.leave(request)
        return request, command

    def down(self, request=None):
        """One waits, and a newcomer finds out: the others wait for what it says."""
        waiting, _ = self.wait(request)
        assert self.arrive(waiting.method).state == "running"
        return waiting

    def arrive(self, *args, loop=None, **more):
        request = self.request(*args, **more)
        self.loop = loop
        self.rooms.arrive(request)
        return request

    def tick(self, request):
        """Until its alarm goes off."""
        self.now += self.rooms.alarm(request.place)
        self.rooms.tick(request.place)

    @property
    def waiting(self):
        return sum(room.waiting for room in self.rooms.snapshots())


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def make(monkeypatch):
    """Waiting rooms with a policy, and a clock that stands still."""
    clock = Clock()
    monkeypatch.setattr(_waiting, "monotonic", clock)

    def make(*, most=1000, **rules):
        rules.setdefault("wait", tenacity.wait_fixed(0.5))
        return Rooms(clock, RetryPolicy(**rules), most)

    return make


# Who waits.


def test_nothing_is_open_while_nothing_fails(make):
    """G5: neither answers nor failures that are not ours open a room."""
    rooms = make()
    request = rooms.request()
    assert rooms.fail(request, None, raised=False, status=200)[1] == Send()
    rooms.rooms.done(request, 200)
    assert rooms.fail(failed=None)[1] == Raise()
    assert rooms.rooms.open == {}
    assert rooms.rooms.snapshots() == []


def test_failed_request_waits(make):
    """A failure opens the room; its request is undone before it waits (G8)."""
    rooms = make()
    request, command = rooms.fail()
    assert command == Replay(0.5)
    assert (request.state, rooms.waiting) == ("leaving", 0)
    rooms.rooms.wait(request.place, command.after)
    assert (request.state, rooms.waiting) == ("waiting", 1)


def test_lone_request_goes_when_its_wait_is_over(make):
    """Alone, the policy's wait is all there is."""
    rooms = make()
    request, _ = rooms.wait()
    assert rooms.rooms.alarm(request.place) == pytest.approx(0.5)
    rooms.tick(request)
    assert request.state == "running"
    assert rooms.rooms.called(request) is None
    assert request.exchange.number == 2


def test_success_wakes_who_waits(make):
    """G9: the first success lets others in; the shell is told through `wake`."""
    rooms = make()
    others = [rooms.wait()[0] for _ in range(3)]
    rooms.rooms.done(rooms.request(), 200)
    assert others[0].state == "running"
    assert others[0].woken > 0


def test_success_of_another_route_says_nothing(make):
    """What has not failed may not need the database at all."""
    rooms = make()
    waiting, _ = rooms.wait()
    rooms.rooms.done(rooms.request("GET", "/static"), 200)
    assert waiting.state == "waiting"


@pytest.mark.parametrize("status", [None, 404, 500])
def test_error_says_nothing(make, status):
    """An answer of 400 or above may have come before the database was asked."""
    rooms = make()
    waiting, _ = rooms.wait()
    rooms.rooms.done(rooms.request(), status)
    assert waiting.state == "waiting"
    rooms.tick(waiting)
    rooms.rooms.done(waiting, status)
    assert waiting.state == "over"
    assert rooms.rooms.snapshots()[0].window == 0


def test_arrival_of_a_failed_route_waits(make):
    """G9: a new request whose method and path have failed since waits; others pass."""
    rooms = make()
    rooms.down()
    assert rooms.arrive("GET", "/orders/18").state == "waiting"
    assert rooms.arrive("POST", "/orders/18").place is None
    assert rooms.arrive("GET", "/static/logo").place is None


@pytest.mark.parametrize(
    ("method", "methods", "spare"),
    [("GET", None, 5), ("PUT", None, 0), ("POST", None, 0), ("GET", {"PUT"}, 0)],
)
def test_arrival_that_may_have_no_replay_is_not_for_finding_out(make, method, methods, spare):
    """A request that is not routed yet has no mark: only a safe method is replayed for sure."""
    rooms = make(**({} if methods is None else {"methods": methods}))
    rooms.wait(rooms.request(method))
    assert rooms.arrive(method).place.spare == spare


def test_arrival_passes_where_only_conflicts_failed(make):
    """The database is there."""
    rooms = make()
    rooms.wait(failed=CONFLICT)
    assert rooms.arrive().place is None


# Who is refused at once.


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_wait_of_a_lone_request_that_ends_past_the_deadline_is_refused_at_once(make, attempt):
    """G2: nobody can call who is alone, so it does not wait for what will not come."""
    rooms = make(wait=tenacity.wait_fixed(0.5), deadline=0.25 + 0.5 * (attempt - 1))
    request = rooms.request()
    for _ in range(attempt - 1):
        assert rooms.wait(request)[1] == Replay(0.5)
        rooms.tick(request)
        assert rooms.rooms.called(request) is None
    assert rooms.wait(request)[1].outcome == "deadline"
    assert rooms.waiting == 0


def test_others_may_call_who_waits_past_its_deadline(make):
    """A wait is the longest that a lone request waits; a success may call it earlier."""
    rooms = make(wait=tenacity.wait_fixed(20.0), deadline=10.0)
    rooms.wait(rooms.request(mark=Mark(MarkKind.IDEMPOTENT, {"wait": tenacity.wait_fixed(1.0)})))
    request, command = rooms.wait()
    assert command == Replay(20.0)
    rooms.rooms.done(rooms.request(), 200)
    rooms.rooms.done(rooms.request(), 200)
    assert request.state == "running"


def test_ping_may_call_who_waits_past_its_deadline(make):
    """A database that is named can be pinged: its room calls as soon as it is back."""
    rooms = make(wait=tenacity.wait_fixed(20.0), deadline=10.0)
    request, command = rooms.wait(rooms.request(database=Database()))
    assert command == Replay(20.0)
    assert rooms.rooms.ping_due(request.place)
    rooms.rooms.pinged(request.place.room, None)
    assert request.state == "running"


def test_endless_wait_is_refused(make):
    """G10: a strategy that would wait for ever is past any deadline."""
    rooms = make(wait=tenacity.wait_fixed(float("inf")))
    assert rooms.fail()[1].outcome == "deadline"


@pytest.mark.parametrize(("of_policy", "most"), [(None, 3), (2, 2), (0, 0)])
def test_overload(make, of_policy, most):
    """G2: as many wait as the policy allows, or as the shell does where it is None."""
    rooms = make(max_waiting=of_policy, most=3)
    for _ in range(most):
        assert rooms.wait()[1] == Replay(0.5)
    assert rooms.wait()[1].outcome == "overload"
    assert rooms.waiting == most


@pytest.mark.parametrize(("of_policy", "most"), [(None, 3), (2, 2), (1, 1)])
def test_overload_of_arrivals(make, of_policy, most):
    """G2: arrivals that wait count like any other; one too many is over before it began."""
    rooms = make(max_waiting=of_policy, most=3)
    rooms.down()
    for _ in range(most - 1):
        assert rooms.arrive().state == "waiting"
    refused = rooms.arrive()
    assert refused.state == "over"
    assert rooms.rooms.called(refused).outcome == "overload"
    report = refused.exchange.report(rooms.now, refused.path)
    assert (report.attempts, report.failures) == (0, (NO_SERVER,))


def test_those_being_undone_count(make):
    """G2: who has failed and is not undone yet is about to wait."""
    rooms = make(max_waiting=2)
    rooms.fail()
    rooms.fail()
    assert rooms.fail()[1].outcome == "overload"


def test_limit_is_for_all_rooms(make):
    """G2: max_waiting is the middleware's, however many databases it has."""
    rooms = make(max_waiting=2)
    for _ in range(2):
        rooms.wait(rooms.request(database=Database()))
    assert rooms.wait(rooms.request(database=Database()))[1].outcome == "overload"


def test_overload_does_not_hide_a_lost_commit(make):
    """G4: what may have been committed is told, and not that there were too many waiting."""
    rooms = make(max_waiting=0)
    assert rooms.fail(rooms.request("PUT"), LOST_COMMIT)[1] == Refuse("unknown", None)


def test_place_that_was_left_is_free(make):
    """G2: whoever goes on, or away, makes room for another one to wait."""
    rooms = make(max_waiting=1)
    first, _ = rooms.wait()
    rooms.rooms.leave(first)
    second, command = rooms.wait()
    assert command == Replay(0.5)
    rooms.tick(second)
    assert rooms.wait()[1] == Replay(0.5)


def test_refused_request_has_no_place(make):
    """What is not replayed says what it knows of the database, and takes no part in waiting."""
    rooms = make()
    request, command = rooms.wait(rooms.request("POST"))
    assert command == Refuse("not-replayable", 0.5)
    assert (request.state, rooms.waiting) == ("over", 0)
    assert rooms.arrive("POST").state in ("waiting", "running")


def test_sealed_response_passes(make):
    """G2: what the client has a part of is not refused, whoever waits."""
    rooms = make(max_waiting=0)
    request = rooms.request()
    request.exchange.seal("response")
    assert rooms.wait(request)[1] == Raise()
    assert request.state == "over"


# The end of the wait.


def test_who_waits_in_vain_is_told_why(make):
    """G2: past its deadline it is refused, with the failures that it met."""
    rooms = make(deadline=3.0, wait=tenacity.wait_fixed(2.0))
    rooms.wait()
    request, _ = rooms.wait(rooms.request(database=None))
    rooms.now += 3.0
    rooms.rooms.tick(request.place)
    refusal = rooms.rooms.called(request)
    assert (refusal.outcome, request.exchange.number) == ("deadline", 1)


def test_arrival_that_waits_in_vain(make):
    """G7: it made no attempt, and the log says what it waited for."""
    rooms = make(deadline=3.0)
    rooms.down()
    request = rooms.arrive()
    rooms.now += 3.0
    rooms.rooms.tick(request.place)
    assert rooms.rooms.called(request).outcome == "deadline"
    report = request.exchange.report(rooms.now, request.path)
    assert (report.attempts, report.failures) == (0, (NO_SERVER,))


def test_arrival_whose_turn_it_is_begins_its_first_attempt(make):
    """Nothing of it has failed: it is attempt 1 that begins."""
    rooms = make()
    rooms.down()
    request = rooms.arrive()
    for _ in range(3):
        rooms.rooms.done(rooms.request(), 200)
    assert request.state == "running"
    assert rooms.rooms.called(request) is None
    assert request.exchange.number == 1
    rooms.rooms.done(request, 200)
    assert request.state == "over"


def test_closed(make):
    """Nobody waits in rooms that are closed: those who do are woken, and those who come go."""
    rooms = make()
    waiting = [rooms.wait()[0] for _ in range(3)]
    undone, command = rooms.fail()
    rooms.rooms.close()
    assert all(each.state == "over" and each.woken for each in waiting)
    assert rooms.rooms.called(waiting[0]).outcome == "overload"
    rooms.rooms.wait(undone.place, command.after)
    assert undone.state == "over"
    assert rooms.fail()[1].outcome == "overload"
    assert rooms.arrive().state in ("over", "running")
    assert rooms.waiting == 0


def test_all_are_closed_when_the_interpreter_ends(make):
    """G6: threads that wait are no reason not to end."""
    rooms = make()
    waiting, _ = rooms.wait()
    _waiting.close_all()
    assert waiting.state == "over"


# One room per database.


def test_each_database_has_its_room(make):
    """One that is down does not hold up requests to the other."""
    rooms = make()
    one, two = Database(), Database()
    waiting, _ = rooms.wait(rooms.request(path="/one", database=one))
    rooms.wait(rooms.request(path="/two", database=two))
    rooms.wait(rooms.request(path="/three"))
    assert [room.database for room in rooms.rooms.snapshots()] == [one, two, None]
    rooms.rooms.done(rooms.request(path="/two"), 200)
    assert waiting.state == "waiting"
    rooms.rooms.done(rooms.request(path="/one"), 200)
    assert waiting.state == "running"


def test_place_follows_the_database_that_failed(make):
    """A replay that gets past one database and fails with the other waits there."""
    rooms = make()
    one, two = Database(), Database()
    request, _ = rooms.wait(rooms.request(database=one))
    rooms.rooms.done(rooms.request(), 200)
    assert request.state == "running"
    request.failed_database = two
    rooms.wait(request)
    first, second = rooms.rooms.snapshots()
    assert (first.running, first.waiting) == (0, 0)
    assert (second.database, second.waiting) == (two, 1)
    assert request.place.arrived == request.started


def test_each_event_loop_has_its_rooms(make):
    """A waker belongs to its loop: rooms of two loops have nothing to do with each other."""
    rooms = make()
    one, _ = rooms.wait(loop="one")
    rooms.wait(loop="two")
    assert rooms.arrive(loop="three").place is None
    rooms.loop = "two"
    rooms.rooms.done(rooms.request(), 200)
    assert one.state == "waiting"
    rooms.loop = "one"
    rooms.rooms.done(rooms.request(), 200)
    assert one.state == "running"


@pytest.mark.parametrize(
    ("error", "opens", "again"),
    [
        (None, True, False),
        (pymysql.OperationalError(2003, "Can't connect to MySQL server"), False, True),
        (RuntimeError("a ping's own business"), False, False),
        (KeyboardInterrupt(), False, True),
    ],
    ids=["answered", "failed", "says nothing", "interrupted"],
)
def test_ping(make, error, opens, again):
    """Answered, it opens the room; failed, it is tried again; of an error of its own, nothing."""
    rooms = make(wait=tenacity.wait_fixed(5.0))
    request, _ = rooms.wait(rooms.request(database=Database()))
    assert rooms.rooms.ping_due(request.place)
    rooms.rooms.pinged(request.place.room, error)
    assert (request.state == "running") is opens
    rooms.now += PROBE_SECONDS * 1.01
    assert rooms.rooms.ping_due(request.place) is again


# What is forgotten, and what is told.


def test_calm_rooms_are_forgotten(make):
    """A room in which nobody waits and nothing fails is no more; the next one knows nothing."""
    rooms = make()
    first, _ = rooms.wait()
    rooms.tick(first)
    rooms.rooms.done(first, 200)
    assert len(rooms.rooms.open) == 1
    rooms.now += LONG
    assert rooms.arrive().place is None
    assert rooms.rooms.open == {}
    rooms.wait(rooms.request(path="/other"))
    (shown,) = rooms.rooms.snapshots()
    assert (shown.window, shown.running, shown.waiting) == (0, 0, 1)
    assert rooms.arrive().place is None  # its route had failed in the one that is forgotten


def test_run_that_outlives_its_room(make):
    """A room gets calm while somebody still runs: what becomes of that one harms nobody."""
    rooms = make()
    works, fails = (rooms.wait()[0] for _ in range(2))
    for _ in range(2):
        rooms.rooms.done(rooms.request(), 200)
    rooms.now += LONG
    assert rooms.rooms.snapshots() == []
    rooms.rooms.done(works, 200)
    assert works.state == "over"
    assert rooms.wait(fails, LOST)[1].outcome == "deadline"
    (shown,) = rooms.rooms.snapshots()
    assert (shown.running, shown.waiting) == (0, 0)


def test_requests_leave_nothing_behind(make):
    """A calm middleware holds nothing of the requests that waited."""
    rooms = make()
    places = weakref.WeakSet()
    for _ in range(20):
        request, _ = rooms.wait()
        places.add(request)
        rooms.rooms.leave(request)
    del request
    rooms.now += LONG
    assert rooms.rooms.snapshots() == []
    gc.collect()
    assert len(places) == 0


def test_snapshot_of_a_request(make):
    """A request's room is that of its last failure; it has none before."""
    rooms = make()
    assert rooms.rooms.snapshot(rooms.request()) is None
    database = Database()
    request, _ = rooms.wait(rooms.request(database=database), FULL)
    shown = rooms.rooms.snapshot(request)
    assert (shown.database, shown.state, shown.waiting) == (database, "full", 1)
    assert shown.last_failure is FULL


def test_retry_after_is_from_the_room(make):
    """G10: a database that has been gone for 20 seconds is worth asking again in 20."""
    rooms = make(deadline=1000.0)
    rooms.wait()
    rooms.now += 20.0
    _, refused = rooms.wait(rooms.request("POST"))
    assert refused == Refuse("not-replayable", pytest.approx(20.0))
    assert rooms.wait(rooms.request("PUT"), LOST_COMMIT)[1] == Refuse("unknown", None)


def test_many_threads(make):
    """Threads may call every method: nobody is lost, whatever they do at once."""
    rooms = make(most=1000)
    errors = []
    go = threading.Barrier(8)

    def work():
        try:
            go.wait(10)
            for _ in range(100):
                request, _ = rooms.wait()
                rooms.arrive()
                rooms.rooms.tick(request.place)
                if request.state == "running":
                    rooms.rooms.done(request, 200)
                else:
                    rooms.rooms.leave(request)
        except BaseException as exc:  # noqa: BLE001  # told below
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert errors == []
    (shown,) = rooms.rooms.snapshots()
    assert shown.running + shown.waiting == 800


def test_answer_in_spite_of_a_failure_is_no_success(make):
    """G9: what an app had in its cache says nothing of the database."""
    rooms = make()
    waiting = rooms.down()
    cached = rooms.arrive()
    cached = cached if cached.state == "running" else rooms.request()
    cached.exchange.doom(NO_SERVER)
    rooms.rooms.done(cached, 200)
    assert waiting.state == "waiting"


def test_arrival_that_is_let_in_too_late_is_refused(make):
    """G2: no attempt starts after the deadline, the first one neither."""
    rooms = make(deadline=5.0)
    rooms.down()
    late = rooms.arrive()
    late.place.state = "running"
    rooms.now += 5.0
    assert rooms.rooms.called(late).outcome == "deadline"
    assert late.exchange.number == 0


def test_lock_may_be_taken_again(make):
    """A finaliser, or a signal's handler, that closes the middleware may come in anywhere."""
    rooms = make()
    waiting = rooms.down()
    waiting.place.wake = rooms.rooms.close
    other = rooms.arrive()
    rooms.rooms.done(other, 200)
    assert rooms.rooms.closed


def test_room_of_a_loop_that_has_ended_is_forgotten(make):
    """G2: who was left behind in it waits no longer, and takes nobody's place."""

    class Loop:
        ended = False

        def is_closed(self):
            return self.ended

    rooms, loop = make(), Loop()
    rooms.wait(loop=loop)
    assert rooms.waiting == 1
    loop.ended = True
    assert rooms.waiting == 0
