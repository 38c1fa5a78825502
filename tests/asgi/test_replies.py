"""The headers that tell what happened, the 503, the log and the hooks (G7, G10)."""

import json
import logging
import re

import anyio
import pytest
from tenacity import wait_fixed

from retrymw import (
    DisconnectionError,
    RetryPolicy,
    TooManyConnections,
    TransactionConflict,
    current_attempt,
)
from retrymw.asgi import RetryMiddleware

from .helpers import (
    Client,
    FakeAsyncDatabase,
    FakeDatabase,
    Flaky,
    answer,
    lost,
    middleware,
    policy,
    request,
)

pytestmark = pytest.mark.anyio

ALL = {"retry-attempts", "retry-reason", "retry-outcome", "server-timing"}


async def test_headers_after_a_recovery():
    """The client of a replayed request can tell how often it ran, why, and that it worked."""
    client = await request(Flaky(lost(), TooManyConnections()))
    assert client.status == 200
    assert client.told == ALL
    assert client.header("retry-attempts") == "3"
    assert client.header("retry-reason") == "too-many-connections"
    assert client.header("retry-outcome") == "recovered"
    assert re.fullmatch(r'retry;dur=\d+;desc="2 replays"', client.header("server-timing"))
    assert client.header("content-type") == "text/plain"


async def test_one_replay_is_singular():
    """The server timing is readable."""
    client = await request(Flaky(TransactionConflict()))
    assert client.header("server-timing").endswith('desc="1 replay"')
    assert client.header("retry-reason") == "conflict"


async def test_server_timing_measures_the_exchange():
    """The duration is that of the whole exchange, waits included, in milliseconds."""
    client = await request(Flaky(lost()), policy=RetryPolicy(wait=wait_fixed(0.02)))
    assert 19 <= int(re.search(r"dur=(\d+)", client.header("server-timing"))[1]) < 5000


@pytest.mark.parametrize("status", [200, 404, 500])
@pytest.mark.parametrize(
    ("expose", "failures", "told"),
    [
        ("replayed", 0, set()),
        ("replayed", 1, ALL),
        ("always", 0, {"retry-attempts"}),
        ("always", 1, ALL),
        ("never", 0, set()),
        ("never", 1, set()),
    ],
)
async def test_expose(expose, failures, told, status):
    """The headers appear when something happened, always, or never, as the policy has it."""

    async def app(scope, receive, send):
        await answer(send, status=status)

    client = await request(Flaky(*[lost()] * failures, then=app), policy=policy(expose=expose))
    assert client.status == status
    assert client.told == told
    if told:
        assert client.header("retry-attempts") == str(failures + 1)


@pytest.mark.parametrize(
    ("expose", "told"),
    [
        ("replayed", ALL | {"retry-after"}),
        ("always", ALL | {"retry-after"}),
        ("never", {"retry-after"}),
    ],
)
async def test_expose_of_the_503(expose, told):
    """What never is exposed is what happened; when to come back is said in any case."""
    client = await request(Flaky(*[lost()] * 9), policy=policy(expose=expose))
    assert client.status == 503
    assert client.told == told
    assert client.header("cache-control") == "no-store"


@pytest.mark.parametrize("name", ["Retry-Attempts", "retry-reason", "Retry-Outcome"])
async def test_apps_own_header_is_kept(name, caplog):
    """An app's own header of the same name is never overwritten, and the clash is logged."""

    async def app(scope, receive, send):
        await answer(send, headers=[(name.lower(), "mine")])

    with caplog.at_level(logging.WARNING, "retrymw"):
        client = await request(Flaky(lost(), then=app))
    assert client.header(name) == "mine"
    assert client.told == ALL
    assert any(name.lower() in record.getMessage().lower() for record in caplog.records)


async def test_apps_own_server_timing_is_added_to():
    """Server-Timing is a list: the app's entries and ours are both there."""

    async def app(scope, receive, send):
        await answer(send, headers=[("server-timing", "db;dur=3")])

    client = await request(Flaky(lost(), then=app))
    timings = [value for name, value in client.sent[0]["headers"] if name == b"server-timing"]
    assert timings[0] == b"db;dur=3"
    assert timings[1].startswith(b"retry;")


async def test_messages_of_the_app_are_not_changed():
    """G5: the headers are added to a copy: the app's list may be shared among its responses."""
    headers = [(b"x", b"1")]

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    await request(Flaky(lost(), then=app))
    assert headers == [(b"x", b"1")]


# The 503.

JSON, HTML, TEXT = (
    "application/problem+json",
    "text/html; charset=utf-8",
    "text/plain; charset=utf-8",
)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("application/problem+json", JSON),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("text/plain", TEXT),
        ("text/plain;q=0.5, text/html;q=0.4", TEXT),
        ("text/*;q=0.5, application/json;q=0.6", JSON),
        ("image/png", JSON),
        ("", JSON),
        ("text/html;q=x", JSON),
    ],
)
async def test_503_is_negotiated(accept, content_type):
    """G10: the 503 is problem+json, HTML or text, as the client likes; nothing internal leaks."""
    headers = [] if accept is None else [("accept", accept)]
    client = await request(Flaky(*[lost()] * 9), Client(headers=headers))
    assert client.status == 503
    assert client.header("content-type") == content_type
    assert int(client.header("content-length")) == len(client.body)
    assert client.header("cache-control") == "no-store"
    if content_type == JSON:
        problem = json.loads(client.body)
        assert problem["status"] == 503
        assert problem["title"]
    elif content_type == HTML:
        assert client.body.startswith(b"<!doctype html>")
    everything = client.body + b"".join(name + value for name, value in client.sent[0]["headers"])
    for secret in (b"secret-host", b"3306", b"DisconnectionError", b"Traceback"):
        assert secret not in everything


async def test_accept_may_come_in_several_headers():
    """G10: several Accept headers are one list."""
    headers = [("accept", "image/png"), ("accept", "text/html")]
    client = await request(Flaky(*[lost()] * 9), Client(headers=headers))
    assert client.header("content-type") == HTML


async def test_head_has_no_body():
    """G10: the answer to HEAD has the headers of the 503 and no body."""
    client = await request(Flaky(*[lost()] * 9), Client("HEAD"))
    assert client.status == 503
    assert client.body == b""
    assert int(client.header("content-length")) > 0
    assert client.complete


async def test_retry_after_grows_with_the_wait_and_is_jittered():
    """G10: Retry-After is whole seconds from the next wait, and differs from client to client."""
    seen = set()
    for _ in range(40):
        client = await request(Flaky(lost()), policy=RetryPolicy(wait=wait_fixed(20), deadline=10))
        assert client.header("retry-outcome") == "deadline"
        seen.add(int(client.header("retry-after")))
    assert all(20 <= seconds <= 41 for seconds in seen)
    assert len(seen) > 1


async def test_retry_after_is_at_least_a_second():
    """G10: even without a wait, coming back at once is not the advice."""
    client = await request(Flaky(*[lost()] * 9))
    assert int(client.header("retry-after")) >= 1


@pytest.mark.parametrize(("max_replays", "attempts"), [(0, "1"), (2, "3")])
async def test_503_says_how_often_it_was_tried(max_replays, attempts):
    """G10: the 503 tells the attempts, the reason of the last one and the outcome."""
    client = await request(
        Flaky(*[TransactionConflict()] * 9), policy=policy(max_replays=max_replays)
    )
    assert client.header("retry-attempts") == attempts
    assert client.header("retry-reason") == "conflict"
    assert client.header("retry-outcome") == "exhausted"


async def test_dropped_headers_of_the_failed_attempt():
    """G1: the 503 carries no header of the attempt that failed."""

    async def start(scope, receive, send):
        headers = [(b"set-cookie", b"a=b"), (b"x", b"y")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    client = await request(Flaky(*[lost()] * 9, first=start))
    assert client.status == 503
    assert client.header("set-cookie") is None
    assert client.header("x") is None


# Overload.


@pytest.mark.parametrize("make", [None, FakeDatabase, FakeAsyncDatabase])
@pytest.mark.parametrize("max_waiting", [0, 1, 3])
async def test_only_so_many_requests_wait(max_waiting, make):
    """G2: one request more than may wait is refused at once, also if all fail at once."""
    many, outcomes, waiting = 6, [], set()
    database = make and make()
    together = anyio.Event()
    arrived = []

    async def app(scope, receive, send):
        if database is not None:
            database.use()
        arrived.append(scope["path"])
        if len(arrived) == many:
            together.set()
        await together.wait()
        raise lost()

    served = middleware(
        app,
        policy=RetryPolicy(wait=wait_fixed(3600), deadline=1e6, max_waiting=max_waiting),
        databases=[database] if database is not None else [],
    )
    done = anyio.Event()

    async def one(number):
        client = Client(path=f"/{number}", on_receive=lambda: waiting.add(number))
        await client.call(served)
        outcomes.append((client.status, client.header("retry-outcome")))
        if len(outcomes) == many - max_waiting:
            done.set()

    async with anyio.create_task_group() as tasks:
        for number in range(many):
            tasks.start_soon(one, number)
        with anyio.move_on_after(20):
            await done.wait()
        tasks.cancel_scope.cancel()
    assert len(waiting) == max_waiting
    assert outcomes == [(503, "overload")] * (many - max_waiting)


async def test_replay_that_runs_does_not_wait_any_more():
    """G2: who runs again has left its place among those that wait to the next one."""
    running, done = anyio.Event(), anyio.Event()

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            raise lost()
        if scope["path"] == "/slow":
            running.set()
            await done.wait()
        await answer(send)

    served = middleware(app, policy=policy(max_waiting=1))
    slow, quick = Client(path="/slow"), Client(path="/quick")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow.call, served)
        await running.wait()
        await quick.call(served)
        done.set()
    assert (slow.status, quick.status) == (200, 200)


async def test_overload_tells_when_to_come_back():
    """G10: who is refused for want of room is told when to come back."""
    client = await request(Flaky(lost()), policy=policy(max_waiting=0))
    assert client.header("retry-outcome") == "overload"
    assert int(client.header("retry-after")) >= 1


async def test_refused_for_another_reason_is_not_overload():
    """G10: what would not have been replayed anyway says so, however many wait."""
    client = await request(Flaky(lost()), Client("POST"), policy=policy(max_waiting=0))
    assert client.header("retry-outcome") == "not-replayable"


# The log and the hooks.


async def test_nothing_is_told_of_a_good_request(caplog):
    """G5: a request in which nothing failed leaves no log record and calls no hook."""
    reports = []
    with caplog.at_level(logging.DEBUG, "retrymw"):
        await request(Flaky(), hooks=[reports.append])
        await request(Flaky(), policy=policy(expose="always"), hooks=[reports.append])
    assert reports == []
    assert [record for record in caplog.records if record.name.startswith("retrymw")] == []


async def test_one_record_tells_the_story(caplog):
    """G7: one log record per exchange, with every attempt's failure and the original exception."""
    failures = [lost(), TooManyConnections("no slot"), TransactionConflict("deadlock")]
    with caplog.at_level(logging.DEBUG, "retrymw"):
        await request(Flaky(*failures), Client(path="/orders"))
    [record] = [record for record in caplog.records if record.name.startswith("retrymw")]
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "GET /orders" in message
    assert "recovered" in message
    for words in ("secret-host", "no slot", "deadlock", "attempt 1", "attempt 3"):
        assert words in message
    assert record.exc_info[1] is failures[-1]


async def test_refusal_is_an_error_in_the_log(caplog):
    """G7: what was answered with a 503 is logged as an error, with the last original exception."""
    failure = lost()
    with caplog.at_level(logging.DEBUG, "retrymw"):
        await request(Flaky(failure), Client("POST"))
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info[1] is failure


async def test_path_cannot_forge_a_record(caplog):
    """G7: a path with line breaks stays on its line."""
    await request(Flaky(lost()), Client("POST", path="/a\nERROR forged"))
    assert "\n" not in caplog.records[0].getMessage()


async def test_hooks_are_told_of_every_failure_and_of_the_end():
    """G7: a hook gets a report after each failed attempt, then one of the outcome."""
    failures, reports = [lost(), lost()], []
    await request(
        Flaky(*failures),
        Client(path="/orders"),
        policy=RetryPolicy(wait=lambda state: 0.001 * state.attempt_number),
        hooks=[reports.append],
    )
    assert [(r.outcome, r.attempts, len(r.failures)) for r in reports] == [
        (None, 1, 1),
        (None, 2, 2),
        ("recovered", 3, 2),
    ]
    assert [r.next_in for r in reports] == [0.001, 0.002, None]
    assert {(r.method, r.path) for r in reports} == {("GET", "/orders")}
    assert [f.exception for f in reports[-1].failures] == failures
    assert reports[0].elapsed <= reports[1].elapsed <= reports[2].elapsed


async def test_hook_that_raises_harms_nobody(caplog):
    """G7: an error in a hook is logged; the other hooks and the request go on."""
    reports = []

    def broken(report):
        raise ZeroDivisionError

    client = await request(Flaky(lost()), hooks=[broken, reports.append])
    assert client.status == 200
    assert len(reports) == 2
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


async def test_fence_is_in_the_report():
    """G7: the reason of a fence is told."""
    reports = []

    async def fence(scope, receive, send):
        current_attempt().fence("card charged")

    await request(Flaky(lost(), first=fence), hooks=[reports.append])
    assert [(report.outcome, report.fence) for report in reports] == [
        ("not-replayable", "card charged")
    ]


@pytest.mark.parametrize("wrong", [[1], 1, [FakeAsyncDatabase.rollback]])
def test_hooks_are_checked_at_start_up(wrong):
    """What can't be called with a report is refused when the app starts."""
    with pytest.raises(TypeError, match="hooks"):
        RetryMiddleware(answer, hooks=wrong)


def test_policy_is_checked_at_start_up():
    """What is no policy is refused when the app starts."""
    with pytest.raises(TypeError, match="policy"):
        RetryMiddleware(answer, policy=5)


async def test_default_policy_is_used():
    """Without a policy the default one rules."""
    client = Client("POST")
    await client.call(middleware(Flaky(lost()), policy=None))
    assert client.header("retry-outcome") == "not-replayable"


async def test_failure_in_the_report_is_the_original(caplog):
    """G7: hooks and the log see the exception object itself, with the lines it passed."""
    failure, reports = DisconnectionError("original"), []
    await request(Flaky(failure), hooks=[reports.append])
    assert reports[-1].failures[0].exception is failure
    assert failure.__traceback__ is not None
    assert "in __call__" in caplog.text
