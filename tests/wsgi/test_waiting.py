"""Waiting: in threads, in greenlets, and how many may."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tenacity

from retrymw import current_attempt
from retrymw.typing import Environ, Report, StartResponse

from .helpers import Attempts, FakeDatabase, Reply, answer, doing, lost, request, serve


class Waiters:
    """Requests that wait in threads until they are told to go on."""

    def __init__(self, middleware: Any, on_wait: Callable[[Any], None]) -> None:
        self._middleware = middleware
        self._pool = ThreadPoolExecutor(6)
        self._waiting = threading.Semaphore(0)
        self._go_on = threading.Event()
        on_wait(self._wait)

    def _wait(self, _: float) -> None:
        self._waiting.release()
        assert self._go_on.wait(10)

    def start(self, count: int) -> list[Future[Reply]]:
        """So many more requests, all of which wait when this returns."""
        replies = [self._pool.submit(serve, self._middleware) for _ in range(count)]
        for _ in range(count):
            assert self._waiting.acquire(timeout=10)
        return replies

    def go_on(self) -> None:
        self._go_on.set()


def down_once(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """An app that fails in the first attempt."""
    if not current_attempt().is_replay:
        raise lost()
    return answer()(environ, start_response)


@pytest.mark.parametrize(("max_waiting", "most"), [(None, 4), (0, 0), (1, 1), (6, 6)])
def test_overload(retry: Any, on_wait: Any, max_waiting: int | None, most: int) -> None:
    """G2: so many requests may wait, 4 under threads by default; one more is refused."""
    middleware = retry(down_once, max_waiting=max_waiting)
    waiters = Waiters(middleware, on_wait)
    replies = waiters.start(most)
    refused = serve(middleware)
    assert (refused.status, refused.outcome) == (503, "overload")
    assert refused.headers["Retry-After"] is not None
    waiters.go_on()
    assert [reply.result(10).status for reply in replies] == [200] * most
    if most:
        assert serve(middleware).status == 200  # there is room again


@pytest.mark.parametrize("together", ["in the wait strategy", "while rolling back"])
def test_overload_of_many_at_once(retry: Any, on_wait: Any, together: str) -> None:
    """G2: the limit holds also for requests that fail at the same moment."""
    all_fail, go_on = threading.Barrier(6), threading.Event()
    waiting: list[float] = []
    refused: list[Report] = []

    def meet(_: object = None) -> float:
        all_fail.wait(10)
        return 0.0

    def wait(seconds: float) -> None:
        waiting.append(seconds)
        if len(waiting) > 2:
            go_on.set()
        assert go_on.wait(10)

    def hook(report: Report) -> None:
        if report.outcome == "overload":
            refused.append(report)
        if len(refused) == 4:
            go_on.set()

    on_wait(wait)
    rolling_back = together == "while rolling back"
    database = FakeDatabase(rollback=meet if rolling_back else None)
    middleware = retry(
        doing(database.open, down_once),
        databases=[database],
        hooks=[hook],
        max_waiting=2,
        wait=tenacity.wait_none() if rolling_back else meet,
    )
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: serve(middleware), range(6)))
    assert sorted(str(reply.outcome) for reply in replies) == ["overload"] * 4 + ["recovered"] * 2


def test_others_are_served_meanwhile(retry: Any, on_wait: Any) -> None:
    """G9: requests that need no replay pass those that wait."""

    def app(environ: Any, start_response: Any) -> Any:
        return (answer() if environ["PATH_INFO"] == "/static" else down_once)(
            environ, start_response
        )

    middleware = retry(app)
    waiters = Waiters(middleware, on_wait)
    replies = waiters.start(4)
    assert serve(middleware, request(path="/static")).status == 200
    waiters.go_on()
    assert [reply.result(10).status for reply in replies] == [200] * 4


def test_middlewares_do_not_share_their_limit(retry: Any, on_wait: Any) -> None:
    """One middleware's waiting requests do not count for another's."""
    first, second = (retry(down_once, max_waiting=1) for _ in range(2))
    waiters = Waiters(first, on_wait)
    [reply] = waiters.start(1)
    on_wait(lambda _: None)
    assert serve(second).status == 200
    waiters.go_on()
    assert reply.result(10).status == 200


def test_deadline_counts_from_the_arrival(
    retry: Any, on_wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: a request has its deadline for all of its attempts together."""
    clock = [1000.0]
    monkeypatch.setattr("retrymw._waiting.monotonic", lambda: clock[0])
    monkeypatch.setattr("retrymw._wsgi_run.monotonic", lambda: clock[0])

    def wait(seconds: float) -> None:
        clock[0] += seconds

    on_wait(wait)
    app = Attempts(lost())
    reply = serve(retry(app, wait=tenacity.wait_fixed(3), deadline=10))
    assert (app.calls, reply.outcome) == (4, "deadline")
    assert clock[0] == 1009


def run(*arguments: str) -> Any:
    """What a Python script prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["retrymw.wsgi", "retrymw"])
def test_no_event_loop(module: str) -> None:
    """Importing the WSGI shell, and serving with it, never loads asyncio."""
    loaded = run("-c", f"import {module}, json, sys; print(json.dumps(sorted(sys.modules)))")
    assert module in loaded
    assert not {"asyncio", "anyio", "trio", "gevent", "retrymw.asgi"} & set(loaded)


@pytest.fixture(scope="module")
def on_gevent() -> Any:
    """What happened in a process with gevent's patches."""
    return run("-m", "tests.wsgi.on_gevent")


def test_waiting_greenlets_block_nobody(on_gevent: Any) -> None:
    """G9: under gevent's server other requests are served while many wait."""
    assert on_gevent["served meanwhile"] == [200, "hello", None]
    assert on_gevent["waiting"] == 50


def test_waiting_greenlets_are_answered(on_gevent: Any) -> None:
    """G1: each greenlet has its own attempts, and its own answer."""
    assert on_gevent["afterwards"] == [[200, "hello", "2"]] * 50


def test_a_thousand_greenlets_may_wait(on_gevent: Any) -> None:
    """G2: under gevent the limit is 1000; one more is refused."""
    assert (on_gevent["most waiting"], on_gevent["recovered"]) == (1000, 1000)
    assert on_gevent["one more"] == [503, "overload"]


def test_first_success_calls_the_waiting_greenlets(on_gevent: Any) -> None:
    """G9: greenlets that would wait long are called once a request works."""
    # That they were, before their own waits were over, the script has asserted.
    assert on_gevent["first success"] == [200, None]


def test_gevent_timeout_ends_a_wait(on_gevent: Any) -> None:
    """G6: the waits are gevent's own: a gevent.Timeout around a request ends one, and passes.

    Its place in the waiting room goes with it.
    """
    assert on_gevent["timeout passed"] is True
