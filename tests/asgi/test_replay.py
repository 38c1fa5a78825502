"""What is replayed, how often, and what the client sees of it (G1, G2, G3, G4)."""

import time

import anyio
import pytest
from tenacity import wait_fixed

from retrymw import (
    DisconnectionError,
    RetryPolicy,
    TooManyConnections,
    TransactionConflict,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.asgi import RetryMiddleware

from .helpers import (
    Client,
    FakeDatabase,
    Flaky,
    NotOurs,
    answer,
    echo,
    lost,
    middleware,
    policy,
    request,
)

pytestmark = pytest.mark.anyio

FAILURES = [DisconnectionError(), TooManyConnections(), TransactionConflict()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.kind)
async def test_failed_attempt_is_replayed(failure):
    """G1: the client of a failed attempt gets the answer of the next one, and nothing else."""

    async def start_only(scope, receive, send):
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x", b"1")]})
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    client = await request(Flaky(failure, first=start_only))
    assert (client.status, client.body) == (200, b"ok")
    assert client.header("x") is None
    assert client.kinds == ["start", "body"]
    assert len(client.runs) == 2


@pytest.mark.parametrize("max_replays", [0, 1, 5])
async def test_app_runs_at_most_once_and_max_replays(max_replays):
    """G2: a request runs the app at most ``1 + max_replays`` times."""
    app = Flaky(*[lost()] * 9)
    client = await request(app, policy=policy(max_replays=max_replays))
    assert app.calls == 1 + max_replays
    assert client.status == 503
    assert client.header("retry-outcome") == "exhausted"
    assert client.header("retry-attempts") == str(1 + max_replays)


async def test_last_replay_may_succeed():
    """G2: with the default policy five replays are made, and the fifth may be the one."""
    app = Flaky(*[lost()] * 5)
    client = await request(app)
    assert app.calls == 6
    assert client.status == 200


async def test_wait_that_would_pass_the_deadline_is_not_begun():
    """G2: no attempt starts after the deadline, so a wait that ends after it is pointless."""
    app = Flaky(lost())
    client = await request(app, policy=RetryPolicy(wait=wait_fixed(60), deadline=10))
    assert app.calls == 1
    assert (client.status, client.header("retry-outcome")) == (503, "deadline")


async def test_rolling_back_may_use_up_the_deadline():
    """G2: no attempt starts after the deadline, however it was spent."""
    database = FakeDatabase(on_rollback=lambda: time.sleep(0.06))

    async def use(scope, receive, send):
        database.use()

    app = Flaky(lost(), first=use)
    client = await request(app, policy=policy(deadline=0.05), databases=[database])
    assert app.calls == 1
    assert (client.status, client.header("retry-outcome")) == (503, "deadline")


async def test_what_is_not_ours_passes_untouched():
    """G5: an exception that is not ours reaches the server as the same object."""
    error = NotOurs()
    app = Flaky(error)
    client = Client()
    with pytest.raises(NotOurs) as caught:
        await request(app, client)
    assert caught.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert app.calls == 1
    assert client.sent == []


async def test_what_is_not_ours_in_a_replay_passes_untouched():
    """G5, G7: what a replay raises passes as well, without the failure before it as its context."""
    error = NotOurs()
    app = Flaky(lost(), error)
    with pytest.raises(NotOurs) as caught:
        await request(app)
    assert caught.value is error
    assert error.__context__ is None
    assert app.calls == 2


@pytest.mark.parametrize("failures", [[], [lost()]], ids=["first", "replay"])
@pytest.mark.parametrize("status", [200, 500])
async def test_held_is_flushed_before_what_is_not_ours_is_raised(status, failures):
    """G5: what was sent before an exception that is not ours leaves before it is raised."""
    client, error, seen = Client(), NotOurs(), []

    async def start_and_fail(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        raise error

    async def outside(scope, receive, send):
        try:
            await middleware(Flaky(*failures, then=start_and_fail))(scope, receive, send)
        except NotOurs as exc:
            seen.append((exc, client.kinds))
            raise

    with pytest.raises(NotOurs):
        await client.call(outside)
    assert seen == [(error, ["start"])]
    assert client.status == status


async def test_kinds_that_are_not_handled_pass():
    """G5: a kind that the policy leaves out passes as if retrymw were not there."""
    error = TransactionConflict()
    app = Flaky(error)
    with pytest.raises(TransactionConflict) as caught:
        await request(app, policy=policy(kinds={"disconnection"}))
    assert caught.value is error
    assert app.calls == 1


# §5. The three columns: before any commit, after a commit was seen, COMMIT sent and answer lost.
TABLE = [
    *[(method, None, "yes yes yes") for method in ("GET", "HEAD", "OPTIONS", "TRACE", "QUERY")],
    *[(method, None, "yes no no") for method in ("PUT", "DELETE")],
    *[(method, None, "no no no") for method in ("POST", "PATCH", "PROPFIND")],
    ("POST", rollback_safe, "yes no no"),
    ("PATCH", rollback_safe, "yes no no"),
    ("PUT", rollback_safe, "yes no no"),
    ("POST", idempotent, "yes yes yes"),
    ("DELETE", idempotent, "yes yes yes"),
    ("GET", never_replay, "no no no"),
    ("POST", never_replay, "no no no"),
    ("GET", "fence", "no no no"),
    ("PUT", "fence", "no no no"),
]
COLUMNS = ("not-replayable", "committed", "unknown")


@pytest.mark.parametrize(("method", "mark", "columns"), TABLE)
@pytest.mark.parametrize("column", range(3), ids=COLUMNS)
async def test_only_what_may_be_repeated_is_repeated(method, mark, columns, column):
    """G3, G4: the table of what may be replayed, and the 503 where it says no."""
    calls = 0

    async def endpoint(scope, receive, send):
        nonlocal calls
        calls += 1
        if calls > 1:
            return await answer(send)
        attempt = current_attempt()
        if mark == "fence":
            attempt.fence("card charged")
        if column == 1:
            attempt.commit_sent()
            attempt.commit_answered(committed=True)
        raise lost("commit" if column == 2 else "execute")

    if callable(mark):
        endpoint = mark(endpoint)

    async def app(scope, receive, send):
        scope["endpoint"] = endpoint
        await endpoint(scope, receive, send)

    client = await request(app, Client(method))
    if columns.split()[column] == "yes":
        assert calls == 2
        assert client.status == 200
        return
    assert calls == 1
    assert client.status == 503
    assert client.header("retry-outcome") == COLUMNS[column]
    assert (client.header("retry-after") is None) == (column != 0)


async def test_commit_without_an_answer_is_unknown():
    """G4: a COMMIT that an adapter saw leave and nobody answered is not repeated."""

    async def commit(scope, receive, send):
        current_attempt().commit_sent()

    app = Flaky(lost(), first=commit)
    client = await request(app, Client("PUT"))
    assert app.calls == 1
    assert client.header("retry-outcome") == "unknown"


async def test_commit_of_an_earlier_attempt_does_not_count():
    """G4: what attempt 1 committed is forgotten where attempt 2 was allowed in spite of it."""
    calls = 0

    @idempotent
    async def endpoint(scope, receive, send):
        nonlocal calls
        calls += 1
        if calls == 1:
            current_attempt().commit_sent()
        if calls < 3:
            raise lost()
        await answer(send)

    async def app(scope, receive, send):
        scope["endpoint"] = endpoint
        await endpoint(scope, receive, send)

    client = await request(app, Client("POST"))
    assert client.status == 200
    assert calls == 3


async def test_methods_are_a_policy():
    """G3: the methods that are replayed without a mark are the policy's."""
    client = await request(Flaky(lost()), Client("POST"), policy=policy(methods={"POST"}))
    assert client.status == 200
    client = await request(Flaky(lost()), Client("GET"), policy=policy(methods={"POST"}))
    assert client.header("retry-outcome") == "not-replayable"


async def test_nothing_is_replayed_after_the_response_started():
    """G2: once the response has started the failure passes, the same object."""
    error = lost()

    async def start(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    app, client, reports = Flaky(error, first=start), Client(), []
    with pytest.raises(DisconnectionError) as caught:
        await request(app, client, hooks=[reports.append])
    assert caught.value is error
    assert app.calls == 1
    assert client.body == b"half"
    assert [report.outcome for report in reports] == ["sealed"]


async def test_body_is_replayed_with_the_request():
    """G5: the replay reads what the first attempt read."""

    async def half(scope, receive, send):
        await receive()

    client = await request(
        Flaky(lost(), first=half, then=echo), Client("PUT", body=[b"a", b"b", b"c"])
    )
    assert client.body == b"abc"
    assert [run.read for run in client.runs] == [b"a", b"abc"]


async def test_nested_middleware_does_not_multiply():
    """G2: a request through two middlewares, one inside the other, is replayed by the outer one."""
    app = Flaky(*[lost()] * 99)
    client = await request(middleware(app), policy=policy(max_replays=2))
    assert app.calls == 3
    assert client.status == 503


async def test_request_made_inside_an_attempt_is_not_replayed():
    """G2: a request that an attempt makes in the same process fails with the attempt."""
    inner = Flaky(lost())

    async def app(scope, receive, send):
        await request(inner)
        await answer(send)

    client = await request(app)
    assert client.status == 200
    assert len(client.runs) == 2
    assert inner.calls == 2


async def test_middleware_serves_many_requests_at_once():
    """A middleware has no state of one request: exchanges that overlap don't see each other."""
    app_1, app_2 = anyio.Event(), anyio.Event()
    calls = []

    async def app(scope, receive, send):
        calls.append((scope["path"], current_attempt().number))
        if scope["path"] == "/1":
            app_1.set()
            await app_2.wait()
        else:
            await app_1.wait()
            app_2.set()
        if not current_attempt().is_replay:
            raise lost()
        await answer(send, scope["path"].encode())

    served = middleware(app)
    clients = [Client(path="/1"), Client(path="/2")]
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.call, served)
    assert [client.body for client in clients] == [b"/1", b"/2"]
    assert sorted(calls) == [("/1", 1), ("/1", 2), ("/2", 1), ("/2", 2)]


async def test_app_is_needed():
    """What is not callable is refused at start-up."""
    with pytest.raises(TypeError, match="app is None"):
        RetryMiddleware(None)


@pytest.mark.parametrize("late", [False, True], ids=["while waiting", "during the replay"])
async def test_fence_holds_when_it_is_set_late(late):
    """G3: what outlives attempt 1 and then passes a point of no return must be heard."""
    attempts = []

    async def app(scope, receive, send):
        attempts.append(current_attempt())
        if len(attempts) == 2 and late:
            attempts[0].fence("card charged")
        raise lost()

    def while_waiting(report):
        if not late and len(attempts) == 1:
            attempts[0].fence("card charged")

    client = await request(app, hooks=[while_waiting])
    assert client.header("retry-outcome") == "not-replayable"
    assert len(attempts) == (2 if late else 1)


async def test_patience_is_the_wait_strategys():
    """The strategy is asked for the wait before each replay, with the replay's number."""
    asked = []

    def wait(state):
        asked.append(state.attempt_number)
        return 0

    patience = policy(wait=wait)
    asked.clear()  # the policy has tried the strategy out
    await request(Flaky(*[lost()] * 3), policy=patience)
    assert asked == [1, 2, 3]
