"""The waiting room in event loops: who waits, who is let in and when, and who is sent away."""

import asyncio
import logging
import threading
from contextlib import asynccontextmanager
from time import monotonic

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import tenacity

from retrymw import DisconnectionError, RetryPolicy, TooManyConnections, current_attempt
from retrymw._core import room as machine

from .helpers import Client, FakeDatabase, answer, lost, middleware, plain, read

pytestmark = pytest.mark.anyio


def down():
    """The database is not there."""
    return DisconnectionError("can't connect", phase="connect")


def full():
    """The database gives no more connections."""
    return TooManyConnections("too many connections")


async def until(condition):
    """Wait until it is so, at most 10 s."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # it has no event
            await anyio.sleep(0.002)


class Shop:
    """An app that runs by names, which are the query strings; ``/static`` needs no database.

    Each run waits until it may go on, unless the shop is ``open``, and then raises a ``failure``,
    unless that is None.
    """

    def __init__(self, failure=down, *, opened=True, database=None):
        self.failure = failure
        self.open = opened
        self.database = database
        self.runs = []
        self.inside = set()
        self.may_go = set()

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/static":
            await answer(send)
            return
        name = scope["query_string"].decode()
        self.runs.append(name)
        self.inside.add(name)
        try:
            await until(lambda: self.open or name in self.may_go)
        finally:
            self.inside.remove(name)
            self.may_go.discard(name)
        if self.database is not None:
            self.database.use()
        if self.failure is not None:
            raise self.failure()
        await answer(send, name.encode() + await read(receive))


class PingDatabase(FakeDatabase):
    """A database whose ``ping`` raises what ``answer`` is, or hangs until it is ``over``."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer or down()
        self.pings = 0
        self.cancelled = 0
        self.over = threading.Event()

    def ping(self):
        self.pings += 1
        if self.answer == "hang":
            self.over.wait(20)
        elif isinstance(self.answer, BaseException):
            raise self.answer


class AsyncPingDatabase(PingDatabase):
    """The same with a coroutine."""

    async def ping(self):
        if self.answer == "hang":
            self.pings += 1
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled += 1
        super().ping()


DATABASES = pytest.mark.parametrize("make", [PingDatabase, AsyncPingDatabase])


class Site:
    """The middleware between two validators; every request has a task."""

    def __init__(self, app, tasks, *, inner=None, outer=None, **options):
        rules = {
            name: options.pop(name)
            for name in ("wait", "deadline", "max_waiting", "max_replays")
            if name in options
        }
        rules = {"wait": tenacity.wait_fixed(3600), "deadline": 1e6, **rules}
        more = {} if inner is None else {"inner": inner}
        self.middleware = middleware(app, policy=RetryPolicy(**rules), **more, **options)
        self._outer = {} if outer is None else {"outer": outer}
        self.tasks = tasks

    def get(self, name="", method="GET", path="/", **more):
        """A request that begins now; the client."""
        client = Client(method, path, query_string=name.encode(), **more)
        client.done = False
        client.scope_of_task = anyio.CancelScope()

        async def call():
            with client.scope_of_task:
                await client.call(self.middleware, **self._outer)
            client.done = True

        self.tasks.start_soon(call)
        return client

    async def wait(self, *names, **more):
        """Requests that fail, or queue, one after the other; all wait when this returns."""
        clients = []
        for name in names:
            number = self.waiting + 1
            clients.append(self.get(name, **more))
            await until(lambda number=number: self.waiting == number)
        return clients

    @property
    def rooms(self):
        return self.middleware.waiting_rooms()

    @property
    def waiting(self):
        return sum(room.waiting for room in self.rooms)


@asynccontextmanager
async def serving(app, **options):
    """A site; at the end nobody is left waiting."""
    async with anyio.create_task_group() as tasks:
        site = Site(app, tasks, **options)
        try:
            yield site
        finally:
            tasks.cancel_scope.cancel()


async def outcomes(*clients):
    """How all of them were answered."""
    await until(lambda: all(client.done for client in clients))
    return {(client.status, client.header("retry-outcome")) for client in clients}


def names(*numbers):
    return [str(number) for number in numbers]


# The window, and the order.


async def test_first_success_lets_the_others_in():
    """G9: the first request that works lets in as many as the window has room for, in order.

    Each that works after it lets in the next ones, without any clock.
    """
    shop = Shop()
    async with serving(shop) as site:
        clients = await site.wait(*names(*range(1, 21)))
        await until(lambda: (len(shop.runs), site.waiting) == (20, 20))
        shop.failure, shop.open = None, False
        probe = site.get("probe")
        await until(lambda: shop.inside == {"probe"})
        assert site.waiting == 20
        shop.may_go.add("probe")
        await until(lambda: probe.done)
        for done in range(20):
            [room] = site.rooms
            inside = set(names(*range(done + 1, min(20, done + room.window) + 1)))
            await until(lambda inside=inside: shop.inside == inside)
            shop.may_go.add(str(done + 1))
            await until(lambda done=done: clients[done].done)
        assert await outcomes(probe) == {(200, None)}
        assert await outcomes(*clients) == {(200, "recovered")}
        assert shop.runs[:21] == [*names(*range(1, 21)), "probe"]


async def test_unmanaged_success_lets_one_in():
    """G9: a request that was not in the room, and works, lets in the first of those who wait."""
    shop = Shop(lost)  # on execute: the server may well be there, so new requests don't wait
    async with serving(shop) as site:
        clients = await site.wait(*names(1, 2, 3))
        shop.failure = None
        assert await outcomes(site.get("new")) == {(200, None)}
        assert await outcomes(*clients) == {(200, "recovered")}
        assert shop.runs[:5] == ["1", "2", "3", "new", "1"]


async def test_shortage_keeps_in_flight_what_works():
    """G9: in a shortage each request that comes out lets one in, the first that waits."""
    shop = Shop(None, opened=False)
    async with serving(shop) as site:
        clients = []
        for name in "abc12345":
            clients.append(site.get(name))
            await until(lambda name=name: name in shop.inside)
        shop.failure, shop.may_go = full, {*"12345"}
        await until(lambda: site.waiting == 5)
        shop.failure = None
        assert site.rooms[0].state == "full"
        for out, inside in [("a", {*"bc1"}), ("b", {*"c12"}), ("c", {*"123"})]:
            shop.may_go.add(out)
            await until(lambda inside=inside: shop.inside == inside)
        [room] = site.rooms
        assert (room.window, room.running, room.waiting) == (3, 3, 2)
        shop.open = True
        assert await outcomes(*clients[:3]) == {(200, None)}
        assert await outcomes(*clients[3:]) == {(200, "recovered")}


# Arrivals.


async def test_arrivals_of_a_route_that_failed_wait():
    """A new request waits behind the others before its app is called; other routes pass."""
    shop, database = Shop(), PingDatabase()
    async with serving(shop, databases=[database]) as site:
        clients = await site.wait("1", path="/orders/17")
        clients += await site.wait("2", "3", path="/orders/18")
        assert shop.runs == ["1"]
        assert await outcomes(site.get(path="/static")) == {(200, None)}
        other = site.get("other", "POST", "/orders/17")
        assert await outcomes(other) == {(503, "not-replayable")}
        shop.failure, database.answer = None, "here"
        assert await outcomes(clients[0]) == {(200, "recovered")}
        assert await outcomes(*clients[1:]) == {(200, None)}  # they have seen no failure
        assert shop.runs[:2] == ["1", "other"]
        assert sorted(shop.runs[2:]) == ["1", "2", "3"]


async def test_arrival_that_may_not_be_replayed_waits_as_well():
    """G3: waiting before the first attempt is not replaying."""
    shop, database = Shop(), PingDatabase()
    async with serving(shop, databases=[database]) as site:
        assert await outcomes(site.get(method="POST")) == {(503, "not-replayable")}
        clients = await site.wait("1", "2", method="POST")
        shop.failure, database.answer = None, "here"
        assert await outcomes(*clients) == {(200, None)}
        assert sorted(shop.runs) == ["", "1", "2"]


@pytest.mark.parametrize("size", [1, 1 << 17])
async def test_body_of_an_arrival_arrives_whole(size):
    """G5: what the client sends while it waits is the app's, whole and in order."""
    shop, database, sent = Shop(), PingDatabase(), anyio.Event()
    async with serving(shop, databases=[database]) as site:
        await site.wait("1", method="PUT")
        chunks = [b"a" * size, b"b" * size, sent, b"c" * size]
        [client] = await site.wait("2", method="PUT", body=chunks)
        await until(lambda: client.asked)
        sent.set()
        await anyio.wait_all_tasks_blocked()
        shop.failure, database.answer = None, "here"
        assert await outcomes(client) == {(200, None)}
        assert client.body == b"2" + b"".join([b"a" * size, b"b" * size, b"c" * size])


async def test_arrival_is_not_told_to_send():
    """G5: a client that waits for 100-continue is not asked for its body before the app asks."""
    shop, database = Shop(), PingDatabase()
    async with serving(shop, databases=[database]) as site:
        await site.wait("1", method="PUT")
        [client] = await site.wait(
            "2", method="PUT", body=[b"hello"], headers=[("expect", "100-continue")]
        )
        await anyio.wait_all_tasks_blocked()
        assert client.asked == 0
        shop.failure, database.answer = None, "here"
        assert await outcomes(client) == {(200, None)}
        assert client.body == b"2hello"


async def test_scope_of_an_arrival_is_the_servers():
    """G1, G5: the app of a request that waited gets the server's own scope, as it came."""
    shop, database, seen = Shop(), PingDatabase(), {}

    async def app(scope, receive, send):
        seen[scope["query_string"]] = scope, dict(scope)
        await shop(scope, receive, send)

    # The validators hand on copies.
    async with serving(app, databases=[database], inner=plain, outer=plain) as site:
        await site.wait("1")
        [client] = await site.wait("2")
        before = dict(client.scope)
        shop.failure, database.answer = None, "here"
        assert await outcomes(client) == {(200, None)}
        assert seen[b"2"][0] is client.scope
        assert seen[b"2"][1] == before


async def test_streaming_goes_on():
    """G5: a response of one that has waited streams like any other, and keeps nobody out."""
    shop, database, more = Shop(), PingDatabase(), anyio.Event()

    async def app(scope, receive, send):
        if shop.failure is not None:
            raise shop.failure()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"b"})

    async with serving(app, databases=[database]) as site:
        clients = await site.wait("1", "2", "3")
        shop.failure, database.answer = None, "here"
        await until(lambda: all(client.sent for client in clients))
        assert {client.body for client in clients} == {b"a"}
        assert site.rooms[0].running == 0
        more.set()
        assert await outcomes(*clients) == {(200, "recovered"), (200, None)}
        assert {client.body for client in clients} == {b"ab"}
        assert site.rooms[0].running == 0


# Bounds.


async def test_arrivals_beyond_the_limit_are_refused(caplog):
    """G2, G7, G10: one that may not wait is refused at once; its app is never called.

    The log and the hooks are told of the failure that it would have waited for.
    """
    failure, reports = down(), []
    shop = Shop(lambda: failure)
    options = {"databases": [PingDatabase()], "max_waiting": 2, "hooks": [reports.append]}
    async with serving(shop, **options) as site:
        await site.wait("1", "2")
        caplog.clear()
        client = site.get("3")
        assert await outcomes(client) == {(503, "overload")}
        assert client.header("retry-attempts") == "0"
        assert client.header("retry-reason") == "disconnection"
        assert int(client.header("retry-after")) >= 1
        assert shop.runs == ["1"]
        report = reports[-1]
        assert (report.attempts, report.outcome) == (0, "overload")
        assert report.failures[-1].exception is failure
        assert (report.room.state, report.room.waiting) == ("gone", 2)
        [record] = caplog.records
        assert (record.levelno, record.exc_info[1]) == (logging.ERROR, failure)


async def test_refused_arrival_harms_nobody():
    """G6: that an arrival is refused is nothing to the request whose failure it waited for."""
    shop, database = Shop(), PingDatabase()
    async with serving(shop, databases=[database], max_waiting=1) as site:
        [client] = await site.wait("1")
        assert await outcomes(site.get("2")) == {(503, "overload")}
        assert site.waiting == 1
        shop.failure, database.answer = None, "here"
        assert await outcomes(client) == {(200, "recovered")}


async def test_one_exception_for_all():
    """G6: an exception that several requests are given, as a future's is, ties none to another."""
    failure = lost()
    shop = Shop(lambda: failure)
    async with serving(shop) as site:
        clients = await site.wait("1", "2", "3")
        assert site.waiting == 3
        shop.failure = None
        assert await outcomes(site.get()) == {(200, None)}
        assert await outcomes(*clients) == {(200, "recovered")}


async def test_nobody_may_wait():
    """G2: with ``max_waiting=0`` nobody waits, and the app is asked again soon enough."""
    shop = Shop()
    async with serving(shop, databases=[PingDatabase()], max_waiting=0) as site:
        assert await outcomes(site.get(), site.get()) == {(503, "overload")}
        assert await outcomes(site.get()) == {(503, "overload")}
        assert site.waiting == 0
        shop.failure = None
        clients = []

        def answered():
            if not clients or clients[-1].done:
                clients.append(site.get())
            return len(clients) > 1 and clients[-2].status == 200

        await until(answered)


async def test_waits_end_at_the_deadline():
    """G2: who waits is refused when its deadline has come, the one who watches the clock as well.

    A request that was never begun has made no attempt.
    """
    shop = Shop()
    options = {"deadline": 0.5, "wait": tenacity.wait_fixed(0.3)}
    async with serving(shop, databases=[PingDatabase()], **options) as site:
        began = monotonic()
        clients = await site.wait("1", "2", "3")
        assert await outcomes(*clients) == {(503, "deadline")}
        assert 0.5 <= monotonic() - began < 5
        assert [client.header("retry-attempts") for client in clients] == ["1", "0", "0"]
        assert shop.runs == ["1"]
        assert site.waiting == 0


async def test_closed_middleware_lets_nobody_wait():
    """G6: ``close()`` wakes all who wait; they are refused, and so is who fails afterwards."""
    async with serving(Shop(), databases=[PingDatabase()]) as site:
        clients = await site.wait("1", "2", "3")
        site.middleware.close()
        assert await outcomes(*clients) == {(503, "overload")}
        assert await outcomes(site.get(), site.get(path="/other")) == {(503, "overload")}
        assert site.waiting == 0


async def test_middleware_may_be_closed_by_another_thread():
    """G6: ``close()`` wakes those who wait in whatever thread it is called."""
    async with serving(Shop(), databases=[PingDatabase()]) as site:
        clients = await site.wait("1", "2", "3")
        await anyio.to_thread.run_sync(site.middleware.close)
        assert await outcomes(*clients) == {(503, "overload")}


# Pings.


@DATABASES
async def test_pings_find_out_in_place_of_replays(make):
    """G9: where the database can be pinged, nobody's replay is spent on finding out."""
    shop, database = Shop(), make()
    options = {"databases": [database], "wait": tenacity.wait_none()}
    async with serving(shop, **options) as site:
        clients = await site.wait(*names(*range(10)))
        asked = database.pings
        await until(lambda: database.pings > asked + 5)
        assert shop.runs == ["0"]
        shop.failure, database.answer = None, "here"
        assert await outcomes(*clients) == {(200, "recovered"), (200, None)}
        assert sorted(shop.runs) == ["0", *names(*range(10))]


@DATABASES
async def test_ping_that_hangs(make, monkeypatch):
    """G2: for a ping that hangs nobody waits long: those who wait find out for themselves."""
    monkeypatch.setattr(machine, "PING_SECONDS", 0.1)
    shop, database = Shop(), make("hang")
    options = {"wait": tenacity.wait_fixed(0.1), "max_replays": 999}
    async with serving(shop, databases=[database], **options) as site:
        [client] = await site.wait("1")
        await until(lambda: len(shop.runs) > 3)
        assert database.pings == 1
        shop.failure = None
        assert await outcomes(client) == {(200, "recovered")}
        database.over.set()
        assert database.cancelled == (make is AsyncPingDatabase)  # it ends with its exchange


@DATABASES
async def test_ping_that_says_nothing(make):
    """A ping that fails of something of its own harms nobody: the waiting find out themselves."""
    shop, database = Shop(), make(NotImplementedError())
    options = {"wait": tenacity.wait_fixed(0.1), "max_replays": 999}
    async with serving(shop, databases=[database], **options) as site:
        [client] = await site.wait("1")
        await until(lambda: len(shop.runs) > 3)
        assert database.pings == 1
        shop.failure = None
        assert await outcomes(client) == {(200, "recovered")}


@DATABASES
async def test_ping_that_lies(make):
    """A ping that works while the app's requests fail is not believed for long."""
    shop, database = Shop(), make("here")
    options = {"wait": tenacity.wait_fixed(0.1), "max_replays": 999}
    async with serving(shop, databases=[database], **options) as site:
        [client] = await site.wait("1")
        await until(lambda: len(shop.runs) > 5)
        assert database.pings == 1
        shop.failure = None
        assert await outcomes(client) == {(200, "recovered")}


# Leaving.


@DATABASES
@pytest.mark.parametrize("hangs", [False, True], ids=["down", "hanging"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("how", ["client", "cancel"])
async def test_who_leaves_is_gone_at_once(make, hangs, number, how):
    """G6: a client that leaves, or a cancellation, ends a wait, also that of a queued arrival.

    The first one watches the clock, and pings: when it goes, the next one takes over.
    """
    shop, database, reports = Shop(), make("hang" if hangs else None), []
    async with serving(shop, databases=[database], hooks=[reports.append]) as site:
        clients = await site.wait("1", "2", "3")
        await until(lambda: database.pings)
        gone = clients.pop(number)
        gone.leave() if how == "client" else gone.scope_of_task.cancel()
        await until(lambda: gone.done)
        assert site.waiting == 2
        assert gone.sent == []
        assert shop.runs == ["1"]
        if number == 0:
            assert reports[-1].outcome == "abandoned"
        shop.failure, database.answer = None, "here"
        database.over.set()
        if not hangs or number == 0:  # else the ping that hangs is not over, and was not asked for
            assert await outcomes(*clients) <= {(200, "recovered"), (200, None)}


async def test_all_leave():
    """G6: nobody is pinged for nobody."""
    database = AsyncPingDatabase()
    async with serving(Shop(), databases=[database]) as site:
        clients = await site.wait("1", "2", "3")
        for client in clients:
            client.leave()
        await until(lambda: all(client.done for client in clients))
        asked = database.pings
        await anyio.sleep(3 * machine.PROBE_SECONDS)
        assert database.pings == asked
        assert site.waiting == 0


async def test_cancelled_replay_makes_room():
    """G6, G9: one that is cancelled while it runs gives its place in the window to the next."""
    shop = Shop()
    async with serving(shop) as site:
        clients = await site.wait(*names(*range(20)))
        await until(lambda: (len(shop.runs), site.waiting) == (20, 20))
        shop.failure, shop.open = None, False
        probe = site.get("probe")
        await until(lambda: shop.inside == {"probe"})
        shop.may_go.add("probe")
        await until(lambda: probe.done)
        [room] = site.rooms
        await until(lambda: len(shop.inside) == room.window)
        assert room.window < 20
        clients[0].scope_of_task.cancel()
        await until(lambda: str(room.window) in shop.inside)
        assert "0" not in shop.inside
        assert site.rooms[0].running == room.window
        shop.open = True
        assert await outcomes(*clients[1:]) == {(200, "recovered")}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("number", [0, 1])
async def test_asyncios_own_cancellation(number):
    """G6: ``task.cancel()`` removes who waits, and whoever stays is called."""
    shop, database = Shop(), AsyncPingDatabase()
    async with serving(shop, databases=[database]) as site:
        tasks = []
        for count in (1, 2):
            tasks.append(asyncio.create_task(Client().call(site.middleware)))
            await until(lambda count=count: site.waiting == count)
        cancelled = tasks.pop(number)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert site.waiting == 1
        shop.failure, database.answer = None, "here"
        await asyncio.wait_for(tasks[0], 10)


# Several rooms.


async def test_each_database_has_its_room():
    """G9: requests that use another database than the one that is down wait for nothing."""
    here, gone = PingDatabase(), PingDatabase()
    shops = {"/here": Shop(None, database=here), "/gone": Shop(database=gone)}

    async def app(scope, receive, send):
        await shops[scope["path"]](scope, receive, send)

    async with serving(app, databases=[here, gone]) as site:
        clients = await site.wait("1", "2", path="/gone")
        [room] = site.rooms
        assert room.database is gone
        others = [site.get(path="/here") for _ in range(5)]
        assert await outcomes(*others) == {(200, None)}
        shops["/here"].failure = down
        [client] = await site.wait("3", path="/here")
        assert {room.database for room in site.rooms} == {here, gone}
        shops["/here"].failure, here.answer = None, "here"
        assert await outcomes(client) == {(200, "recovered")}
        assert site.waiting == 2
        shops["/gone"].failure, gone.answer = None, "here"
        assert await outcomes(*clients) == {(200, "recovered"), (200, None)}


class Loop:
    """An event loop in a thread of its own, in which three requests wait for one database."""

    def __init__(self, served, backend):
        self.served = served
        self.backend = backend
        self.rescued = threading.Event()
        self.clients = []
        self.thread = threading.Thread(
            target=anyio.run, args=(self.serve,), kwargs={"backend": backend}
        )

    async def serve(self):
        self.clients = [Client() for _ in range(3)]
        with anyio.move_on_after(20):
            async with anyio.create_task_group() as tasks:
                for client in self.clients:
                    tasks.start_soon(client.call, self.served)
                await until(self.rescued.is_set)
                await Client().call(self.served)

    def join(self):
        """The outcomes, when all have been answered."""
        self.rescued.set()
        self.thread.join(20)
        return {client.header("retry-outcome") for client in self.clients}


@pytest.fixture
def loops():
    """A middleware, its app, and two event loops in which requests wait for it."""
    shop = Shop(lost)
    served = middleware(shop, policy=RetryPolicy(wait=tenacity.wait_fixed(3600), deadline=1e6))
    both = [Loop(served, backend) for backend in ("asyncio", "trio")]
    for each in both:
        each.thread.start()
    anyio.run(until, lambda: [room.waiting for room in served.waiting_rooms()] == [3, 3])
    return served, shop, both


def test_each_event_loop_has_its_room(loops):
    """Threads with event loops of their own may share a middleware: each loop wakes its own."""
    served, shop, both = loops
    shop.failure = None
    assert both[0].join() == {"recovered"}
    assert sum(room.waiting for room in served.waiting_rooms()) == 3
    assert both[1].join() == {"recovered"}


def test_close_wakes_every_event_loop(loops):
    """G6: ``close()`` may be called by any thread, and wakes who waits in whatever event loop."""
    served, _, both = loops
    served.close()
    assert [each.join() for each in both] == [{"overload"}] * 2


# What is told, and what is left behind.


async def test_snapshot():
    """Hooks and a status page are shown the room: its state, who waits, the last failure."""
    failure, reports, shown = down(), [], []
    shop, database = Shop(lambda: failure), PingDatabase()

    async def app(scope, receive, send):
        if scope["path"] == "/status":
            shown.extend(current_attempt().waiting_rooms())
            await answer(send)
        else:
            await shop(scope, receive, send)

    async with serving(app, databases=[database], hooks=[reports.append]) as site:
        assert site.rooms == []
        clients = await site.wait("1", "2")
        assert await outcomes(site.get(path="/status")) == {(200, None)}
        [room] = shown
        assert (room.state, room.window, room.running, room.waiting) == ("gone", 0, 0, 2)
        assert room.database is database
        assert 0 < room.oldest_wait < 10
        assert room.last_failure.exception is failure
        shop.failure, database.answer = None, "here"
        assert await outcomes(*clients) == {(200, "recovered"), (200, None)}
        first, last = reports
        assert (first.room.state, first.room.waiting) == ("gone", 0)
        assert (last.outcome, last.room.state) == ("recovered", "recovering")


async def test_nothing_is_left_behind(monkeypatch):
    """A calm room costs nothing and holds nothing, and those who waited leave no task."""
    shop, database = Shop(), AsyncPingDatabase()
    async with serving(shop, databases=[database]) as site:
        tasks = len(anyio.get_running_tasks())
        clients = await site.wait(*names(*range(5)))
        shop.failure, database.answer = None, "here"
        await outcomes(*clients)
        assert [room.state for room in site.rooms] == ["recovering"]
        calm = monotonic() + machine._QUIET
        monkeypatch.setattr("retrymw._waiting.monotonic", lambda: calm)
        assert await outcomes(site.get()) == {(200, None)}
        assert site.middleware._settings.rooms.open == {}
        await anyio.wait_all_tasks_blocked()
        assert len(anyio.get_running_tasks()) == tasks


@pytest.mark.parametrize("where", ["rollback", "hook", "app", "replay"])
async def test_interruption_leaves_no_place_behind(where):
    """G2, G6: an exchange that is broken off, wherever it is, counts no more."""

    class Stop(BaseException):
        pass

    def stop(*_):
        raise Stop

    async def app(scope, receive, send):
        database.use()
        if where == "app" or (where == "replay" and current_attempt().is_replay):
            raise Stop
        raise lost()

    database = AsyncPingDatabase("here")
    if where == "rollback":
        database.rollback = stop
    hooks = [stop] if where == "hook" else []
    served = middleware(app, databases=[database], hooks=hooks)
    with pytest.raises(Stop):
        await Client().call(served)
    rooms = served._settings.rooms.open.values()
    assert [(len(room.queue), room.running, room.leaving) for room in rooms] in ([], [(0, 0, 0)])
