"""The waiting room in threads: who waits, who is let in and when, and who is sent away."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any
from wsgiref.validate import validator

import pytest
import tenacity

from retrymw import DisconnectionError, TooManyConnections, current_attempt
from retrymw._core import room as machine
from retrymw.typing import Environ, Report, RoomSnapshot, StartResponse
from retrymw.wsgi import RetryMiddleware

from .helpers import FakeDatabase, Reply, answer, generate, lost, request, serve, until, wrap

FAR = 1e6
"""Waits that outlast every test: something else must end them."""


def unreachable() -> Exception:
    """The database is not there."""
    return DisconnectionError("can't connect", phase="connect")


def full() -> Exception:
    """The database gives no more connections."""
    return TooManyConnections("too many connections")


class Shop:
    """An app whose requests have names, in the query string; ``/static`` needs no database.

    Each run waits until it may go on, unless the shop is ``open``, and then raises a ``failure``,
    unless that is None.
    """

    def __init__(
        self,
        failure: Callable[[], Exception] | None = unreachable,
        *,
        opened: bool = True,
        database: FakeDatabase | None = None,
    ) -> None:
        self.failure = failure
        self.open = opened
        self.database = database
        self.runs: list[str] = []
        self.inside: set[str] = set()
        self._changed = threading.Condition()
        self._may_go: set[str] = set()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/static":
            return answer()(environ, start_response)
        name = environ["QUERY_STRING"]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH", 0)))
        with self._changed:
            self.runs.append(name)
            self.inside.add(name)
            assert self._changed.wait_for(lambda: self.open or name in self._may_go, 20)
            self.inside.remove(name)
            self._may_go.discard(name)
            failure = self.failure
        if self.database is not None:
            self.database.open()
        if failure is not None:
            raise failure()
        return answer((name.encode() + body,))(environ, start_response)

    def go_on(self, *names: str) -> None:
        """These may go on, or all for ever."""
        with self._changed:
            self._may_go.update(names)
            self.open = not names
            self._changed.notify_all()


class Site:
    """The middleware between two validators; every request has a thread.

    Args:
        check: what is put around the app and the middleware.
        **options: the policy's, and the middleware's.
    """

    def __init__(
        self, app: Any, threads: ThreadPoolExecutor, check: Any = validator, **options: Any
    ) -> None:
        far: dict[str, Any] = {"wait": tenacity.wait_fixed(3600), "deadline": FAR}
        made = wrap(check(app), **{**far, "max_waiting": 99, **options})
        assert isinstance(made, RetryMiddleware)
        self.middleware = made
        self._served = check(made)
        self._threads = threads

    def get(self, name: str = "", method: str = "GET", path: str = "/", **more: Any) -> Any:
        """The reply, to come."""
        environ = request(method, path, QUERY_STRING=name, **more)
        return self._threads.submit(serve, self._served, environ)

    def wait(self, *names: str, **more: Any) -> list[Future[Reply]]:
        """Requests that fail, or queue, one after the other; all wait when this returns."""
        replies = []
        for name in names:
            number = self.waiting + 1
            replies.append(self.get(name, **more))
            until(lambda number=number: self.waiting == number)
        return replies

    @property
    def rooms(self) -> list[RoomSnapshot]:
        return self.middleware.waiting_rooms()

    @property
    def waiting(self) -> int:
        return sum(room.waiting for room in self.rooms)


@pytest.fixture
def site() -> Iterator[Callable[..., Site]]:
    """Makes a site; at the end nobody is left waiting."""
    made: list[Site] = []
    with ThreadPoolExecutor(64) as threads:

        def make(app: Any, **options: Any) -> Site:
            made.append(Site(app, threads, **options))
            return made[-1]

        yield make
        for each in made:
            each.middleware.close()


def statuses(replies: Iterable[Future[Reply]]) -> set[tuple[int, str | None]]:
    """How all of them were answered."""
    return {(reply.status, reply.outcome) for reply in (each.result(10) for each in replies)}


def names(*numbers: int) -> list[str]:
    return [str(number) for number in numbers]


class Ping:
    """A database's ``ping``: as ``answer`` says; None hangs until it is ``over``."""

    def __init__(self, answer: BaseException | str | None) -> None:
        self.answer = answer
        self.asked = 0
        self.over = threading.Event()

    def __call__(self) -> None:
        self.asked += 1
        if self.answer is None:
            self.over.wait(20)
        if isinstance(self.answer, BaseException):
            raise self.answer


DOWN = unreachable()


# The window, and the order.


def test_first_success_lets_the_others_in(site: Any) -> None:
    """G9: the first request that works lets in as many as the window has room for, in order.

    Each that works after it lets in the next ones, without any clock.
    """
    shop = Shop(unreachable)
    served = site(shop)
    replies = served.wait(*names(*range(1, 21)))
    until(lambda: (len(shop.runs), served.waiting) == (20, 20))  # each has found out for itself
    shop.failure, shop.open = None, False
    probe = served.get("probe")
    until(lambda: shop.inside == {"probe"})
    assert served.waiting == 20
    shop.go_on("probe")
    until(lambda: served.rooms[0].running == served.rooms[0].window)
    done = 0
    while done < 20:
        [room] = served.rooms
        inside = set(names(*range(done + 1, min(20, done + room.window) + 1)))
        until(lambda inside=inside: shop.inside == inside)
        done += 1
        shop.go_on(str(done))
        until(lambda done=done: replies[done - 1].done())
    assert statuses([probe]) == {(200, None)}
    assert statuses(replies) == {(200, "recovered")}


def test_unmanaged_success_lets_one_in(site: Any) -> None:
    """G9: a request that was not in the room, and works, lets in the first of those who wait."""
    shop = Shop(lost)  # on execute: the server may well be there, so new requests don't wait
    served = site(shop)
    replies = served.wait(*names(1, 2, 3))
    shop.failure = None
    assert statuses([served.get("new")]) == {(200, None)}
    assert statuses(replies) == {(200, "recovered")}
    assert shop.runs[:5] == ["1", "2", "3", "new", "1"]


def test_shortage_keeps_in_flight_what_works(site: Any) -> None:
    """G9: in a shortage each request that comes out lets one in, the first that waits."""
    shop = Shop(None, opened=False)
    served = site(shop)
    replies = []
    for name in "abc12345":
        replies.append(served.get(name))
        until(lambda name=name: name in shop.inside)
    shop.failure = full
    shop.go_on(*"12345")
    until(lambda: served.waiting == 5)
    shop.failure = None
    assert served.rooms[0].state == "full"
    for out, inside in [("a", {"b", "c", "1"}), ("b", {"c", "1", "2"}), ("c", {"1", "2", "3"})]:
        shop.go_on(out)
        until(lambda inside=inside: shop.inside == inside)
    [room] = served.rooms
    assert (room.window, room.running, room.waiting) == (3, 3, 2)
    shop.go_on()
    assert statuses(replies[:3]) == {(200, None)}
    assert statuses(replies[3:]) == {(200, "recovered")}


def test_who_fails_again_gets_its_old_place(site: Any) -> None:
    """G9: a probe that failed again is called before those that came after it."""
    shop = Shop()
    served = site(shop, wait=tenacity.wait_chain(tenacity.wait_none(), tenacity.wait_fixed(3600)))
    replies = served.wait("first")
    until(lambda: shop.runs == ["first", "first"])  # it waited alone, and failed again
    replies += served.wait("second")
    until(lambda: shop.runs.count("second") == 2)
    shop.failure = None
    replies.append(served.get("probe"))
    assert {reply.result(10).status for reply in replies} == {200}
    assert shop.runs[-3] == "probe"


# Arrivals.


def test_arrivals_of_a_route_that_failed_wait(site: Any) -> None:
    """A new request waits behind the others before its app is called; other routes pass."""
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=(ping := Ping(DOWN)))])
    replies = served.wait("1", path="/orders/17")
    replies += served.wait("2", "3", path="/orders/18")
    assert shop.runs == ["1"]
    assert serve(served.middleware, request(path="/static")).status == 200
    assert serve(served.middleware, request("POST", path="/orders/17")).status == 503
    assert shop.runs == ["1", ""]  # so it was called
    shop.failure, ping.answer = None, "here"
    assert statuses(replies[:1]) == {(200, "recovered")}
    assert statuses(replies[1:]) == {(200, None)}  # they have seen no failure
    assert sorted(shop.runs) == sorted(["1", "", "1", "2", "3"])


def test_arrival_that_may_not_be_replayed_waits_as_well(site: Any) -> None:
    """G3: waiting before the first attempt is not replaying."""
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=(ping := Ping(DOWN)))])
    assert statuses([served.get(method="POST")]) == {(503, "not-replayable")}
    replies = served.wait("1", "2", method="POST")
    shop.failure, ping.answer = None, "here"
    assert statuses(replies) == {(200, None)}
    assert sorted(shop.runs) == ["", "1", "2"]


class Upload(io.BytesIO):
    """A request body that counts who reads it."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


def test_body_of_an_arrival_is_left_alone(site: Any) -> None:
    """G5: nobody reads the body of a request that waits; then the app has it, whole."""
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=(ping := Ping(DOWN)))])
    replies = served.wait("1", method="PUT")
    upload = {"CONTENT_LENGTH": "5", "wsgi.input": (body := Upload(b"hello"))}
    replies += served.wait("2", method="PUT", **upload)
    assert body.reads == 0
    shop.failure, ping.answer = None, "here"
    assert replies[1].result(10).body == b"2hello"
    assert statuses(replies) == {(200, "recovered"), (200, None)}


def test_environ_of_an_arrival_is_the_servers(site: Any) -> None:
    """G1, G5: the app of a request that waited gets the server's own environ, as it came."""
    shop = Shop()
    seen: list[Environ] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ)
        return shop(environ, start_response)

    middleware = wrap(
        app, databases=[FakeDatabase(ping=(ping := Ping(DOWN)))], wait=tenacity.wait_fixed(3600)
    )
    assert isinstance(middleware, RetryMiddleware)
    assert serve(middleware, request("POST")).status == 503
    environ = request("POST", mine="own")
    before = dict(environ)
    ping.answer = "here"
    shop.failure = None
    assert serve(middleware, environ).status == 200
    assert seen[-1] is environ
    assert dict(environ) == before
    middleware.close()


# Bounds.


def test_arrivals_beyond_the_limit_are_refused(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G2, G7, G10: one that may not wait is refused at once; its app is never called.

    The log and the hooks are told of the failure that it would have waited for.
    """
    reports: list[Report] = []
    failure = unreachable()
    shop = Shop(lambda: failure)
    ping = Ping(DOWN)
    served = site(shop, databases=[FakeDatabase(ping=ping)], max_waiting=2, hooks=[reports.append])
    served.wait("1", "2")
    with caplog.at_level(logging.ERROR, "retrymw"):
        reply = served.get("3").result(10)
    assert (reply.status, reply.outcome) == (503, "overload")
    assert reply.headers["Retry-Attempts"] == "0"
    assert reply.headers["Retry-Reason"] == "disconnection"
    assert int(reply.headers["Retry-After"]) >= 1
    assert shop.runs == ["1"]
    report = reports[-1]
    assert (report.attempts, report.outcome) == (0, "overload")
    assert report.failures[-1].exception is failure
    assert report.room is not None
    assert (report.room.state, report.room.waiting) == ("gone", 2)
    [record] = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


def test_nobody_may_wait(site: Any) -> None:
    """G2: with ``max_waiting=0`` nobody waits, and the app is asked again soon enough."""
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=Ping(DOWN))], max_waiting=0)
    assert statuses([served.get()]) == {(503, "overload")}
    assert statuses([served.get()]) == {(503, "overload")}
    assert served.waiting == 0
    shop.failure = None
    until(lambda: served.get().result(10).status == 200)


def test_waits_end_at_the_deadline(site: Any) -> None:
    """G2: who waits is refused when its deadline has come, the one who watches the clock as well.

    A request that was never begun has made no attempt.
    """
    shop = Shop()
    served = site(
        shop,
        databases=[FakeDatabase(ping=Ping(DOWN))],
        deadline=0.5,
        wait=tenacity.wait_fixed(0.3),
    )
    began = monotonic()
    replies = [each.result(10) for each in served.wait("1", "2", "3")]
    assert 0.5 <= monotonic() - began < 5
    assert {(reply.status, reply.outcome) for reply in replies} == {(503, "deadline")}
    assert [reply.headers["Retry-Attempts"] for reply in replies] == ["1", "0", "0"]
    assert shop.runs == ["1"]
    assert served.waiting == 0


def test_closed_middleware_lets_nobody_wait(site: Any) -> None:
    """G6: ``close()`` wakes all who wait; they are refused, and so is who fails afterwards."""
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=Ping(DOWN))])
    replies = served.wait("1", "2", "3")
    served.middleware.close()
    assert statuses(replies) == {(503, "overload")}
    assert statuses([served.get(), served.get(path="/other")]) == {(503, "overload")}
    assert served.waiting == 0


# Pings.


def test_pings_find_out_in_place_of_replays(site: Any) -> None:
    """G9: where the database can be pinged, nobody's replay is spent on finding out."""
    shop = Shop()
    ping = Ping(DOWN)
    served = site(shop, databases=[FakeDatabase(ping=ping)], wait=tenacity.wait_none())
    replies = served.wait(*names(*range(10)))
    asked = ping.asked
    until(lambda: ping.asked > asked + 5)
    assert shop.runs == ["0"]
    shop.failure, ping.answer = None, "here"
    assert {reply.result(10).status for reply in replies} == {200}
    assert len(shop.runs) == 11


def test_ping_that_hangs(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """G2: for a ping that hangs nobody waits long: those who wait find out for themselves."""
    monkeypatch.setattr(machine, "PING_SECONDS", 0.1)
    shop = Shop()
    ping = Ping(None)
    served = site(
        shop, databases=[FakeDatabase(ping=ping)], wait=tenacity.wait_fixed(0.1), max_replays=999
    )
    replies = served.wait("1")
    until(lambda: len(shop.runs) > 3)
    assert ping.asked == 1
    shop.failure = None
    assert statuses(replies) == {(200, "recovered")}
    ping.over.set()


def test_ping_that_says_nothing(site: Any) -> None:
    """A ping that fails of something of its own harms nobody: the waiting find out themselves."""
    shop = Shop()
    database = FakeDatabase(ping=NotImplementedError())
    served = site(shop, databases=[database], wait=tenacity.wait_fixed(0.1), max_replays=999)
    replies = served.wait("1")
    until(lambda: len(shop.runs) > 3)
    assert database.pings == 1
    shop.failure = None
    assert statuses(replies) == {(200, "recovered")}


def test_ping_that_is_interrupted(site: Any) -> None:
    """A ping that ends in something worse is no answer, and the next one is not kept from it."""
    shop = Shop()
    ping = Ping(SystemExit())
    served = site(shop, databases=[FakeDatabase(ping=ping)])
    replies = served.wait("1", "2")
    until(lambda: ping.asked > 3)
    shop.failure, ping.answer = None, "here"
    assert statuses(replies) == {(200, "recovered"), (200, None)}


def test_ping_that_lies(site: Any) -> None:
    """A ping that works while the app's requests fail is not believed for long."""
    shop = Shop()
    database = FakeDatabase()
    served = site(shop, databases=[database], wait=tenacity.wait_fixed(0.1), max_replays=999)
    replies = served.wait("1")
    until(lambda: len(shop.runs) > 5)
    assert database.pings == 1
    shop.failure = None
    assert statuses(replies) == {(200, "recovered")}


# Several rooms.


def test_each_database_has_its_room(site: Any) -> None:
    """G9: requests that use another database than the one that is down wait for nothing."""
    pings = Ping(DOWN), Ping(DOWN)
    up, down = (FakeDatabase(ping=ping) for ping in pings)
    shops = {"/up": Shop(None, database=up), "/down": Shop(database=down)}

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return shops[environ["PATH_INFO"]](environ, start_response)

    served = site(app, databases=[up, down])
    replies = served.wait("1", "2", path="/down")
    [room] = served.rooms
    assert room.database is down
    assert statuses([served.get(path="/up") for _ in range(5)]) == {(200, None)}
    shops["/up"].failure = unreachable
    replies += served.wait("3", path="/up")
    assert {room.database for room in served.rooms} == {up, down}
    shops["/up"].failure, pings[0].answer = None, "here"
    assert statuses(replies[2:]) == {(200, "recovered")}
    assert served.waiting == 2
    shops["/down"].failure, pings[1].answer = None, "here"
    assert {reply.result(10).status for reply in replies} == {200}


# What is told.


def test_snapshot(site: Any) -> None:
    """Hooks and a status page are shown the room: its state, who waits, the last failure."""
    reports: list[Report] = []
    shown: list[list[RoomSnapshot]] = []
    failure = unreachable()
    shop = Shop(lambda: failure)

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/status":
            shown.append(current_attempt().waiting_rooms())
            return answer()(environ, start_response)
        return shop(environ, start_response)

    database = FakeDatabase(ping=(ping := Ping(DOWN)))
    served = site(app, databases=[database], hooks=[reports.append])
    assert served.rooms == []
    replies = served.wait("1", "2")
    assert statuses([served.get(path="/status")]) == {(200, None)}
    [[room]] = shown
    assert (room.state, room.window, room.running, room.waiting) == ("gone", 0, 0, 2)
    assert room.database is database
    assert 0 < room.oldest_wait < 10
    assert room.last_failure is not None
    assert room.last_failure.exception is failure
    shop.failure, ping.answer = None, "here"
    assert statuses(replies) == {(200, "recovered"), (200, None)}
    [first, last] = reports
    assert first.room is not None
    assert (first.room.state, first.room.waiting) == ("gone", 0)
    assert last.room is not None
    assert (last.outcome, last.room.state) == ("recovered", "recovering")


def test_calm_room_is_forgotten(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A calm room costs nothing and holds nothing: it is not there any more."""
    shop = Shop()
    served = site(shop)
    replies = served.wait("1", "2")
    shop.failure = None
    assert served.get().result(10).status == 200
    assert statuses(replies) == {(200, "recovered")}
    assert [room.state for room in served.rooms] == ["recovering"]
    monkeypatch.setattr("retrymw._waiting.monotonic", lambda: monotonic() + machine._QUIET)
    assert served.get().result(10).status == 200
    assert served.middleware._settings.rooms.open == {}


# Interruptions.


class Stop(BaseException):
    """Like gevent's Timeout."""


class Interruptible(threading.Event):
    """An event whose ``wait`` can be made to raise ``Stop``."""

    stopped = False

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return super().wait(timeout)
        finally:
            if self.stopped:
                raise Stop

    def stop(self) -> None:
        self.stopped = True
        self.set()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_interrupted_wait(site: Any, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """G6: who is interrupted leaves the room at once; another one watches the clock from now on."""
    waits: list[Interruptible] = []

    def event() -> Interruptible:
        waits.append(Interruptible())
        return waits[-1]

    own = SimpleNamespace(Event=event, Thread=threading.Thread)
    monkeypatch.setattr("retrymw._wsgi_wait.threading", own)
    shop = Shop()
    served = site(shop, databases=[FakeDatabase(ping=(ping := Ping(DOWN)))])
    replies = served.wait("1", "2", "3")
    waits[number].stop()
    with pytest.raises(Stop):
        replies.pop(number).result(10)
    assert served.waiting == 2
    asked = ping.asked
    until(lambda: ping.asked > asked + 3)
    shop.failure, ping.answer = None, "here"
    assert {reply.result(10).status for reply in replies} == {200}


@pytest.mark.parametrize("where", ["rollback", "hook", "app", "replay"])
def test_interruption_leaves_no_place_behind(site: Any, where: str) -> None:
    """G2, G6: an exchange that is broken off, wherever it is, counts no more."""

    def stop(*_: object) -> None:
        raise Stop

    attempts: list[int] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        database.open()
        attempts.append(current_attempt().number)
        if where == "app" or (where == "replay" and attempts[-1] == 2):
            raise Stop
        raise lost()

    database = FakeDatabase(rollback=stop if where == "rollback" else None)
    served = site(
        app,
        databases=[database],
        hooks=[stop] if where == "hook" else [],
        max_waiting=1,
        wait=tenacity.wait_none(),
    )
    with pytest.raises(Stop):
        served.get().result(10)
    rooms = served.middleware._settings.rooms.open.values()
    assert [(len(room.queue), room.running, room.leaving) for room in rooms] in ([], [(0, 0, 0)])


def test_response_that_is_never_closed(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """G9: a server that forgets a streamed response keeps nobody out for ever."""
    monkeypatch.setattr(machine, "_STALL", 0.1)
    down = True

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if down:
            raise unreachable()
        return generate(b"hel", b"lo")(environ, start_response)

    database = FakeDatabase(ping=(ping := Ping(DOWN)))
    served = site(app, check=lambda app: app, databases=[database])  # validators demand close()
    with ThreadPoolExecutor(20) as threads:
        forgotten = [
            threads.submit(served.middleware, request(), lambda *_: print) for _ in range(20)
        ]
        until(lambda: served.waiting == 20)
        replies = served.wait("last")
        down, ping.answer = False, "here"
        assert statuses(replies) == {(200, None)}
        assert len([response.result(10) for response in forgotten]) == 20


@pytest.mark.parametrize(
    "arguments", [[], ["pings"], ["late"], ["gevent"], ["gevent", "pings"], ["gevent", "late"]]
)
def test_end_of_the_process(arguments: list[str]) -> None:
    """G6: a process that ends waits for nobody who waits: they are refused at once."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.wsgi.at_exit", *arguments],
        capture_output=True,
        text=True,
        timeout=20,  # they would wait 30 s
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "503 overload\n" * 3
