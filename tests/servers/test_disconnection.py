"""Storm's disconnection tests, on every shell and every backend, over connections cut for real."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import tenacity

from retrymw import RetryPolicy
from retrymw.typing import Report

Client = Callable[..., httpx.Response]


def told(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """The status and what the headers say happened."""
    headers = response.headers
    return response.status_code, headers.get("retry-attempts"), headers.get("retry-outcome")


def test_works_through_the_proxy(client: Client, backend: Any, script: Any) -> None:
    """G5: while nothing fails the app runs once and the answer says nothing of us."""
    response = client("POST", "/rollback_safe/a")
    assert (response.text, told(response)) == ("added a", (200, None, None))
    assert client("GET", "/count/x").text == "1"
    assert script.attempts == [1, 1]


def test_cut_on_execute(client: Client, backend: Any, script: Any) -> None:
    """A read whose connection is cut in the middle of a statement is replayed."""
    script.at(1, "connected", lambda: backend.proxy.cut("reset", at=1))
    response = client("GET", "/count/x")
    assert (response.text, told(response)) == ("0", (200, "2", "recovered"))
    assert backend.proxy.faults == 1


def test_fin_on_execute(client: Client, backend: Any, script: Any) -> None:
    """A connection that ends in good order in the middle of a statement is a failure as well."""
    script.at(1, "connected", lambda: backend.proxy.cut("fin", at=1))
    assert told(client("GET", "/count/x")) == (200, "2", "recovered")


def test_write_is_cut_on_execute(client: Client, backend: Any, script: Any) -> None:
    """G3: a @rollback_safe POST that fails before its COMMIT is replayed and takes effect once."""
    script.at(1, "connected", lambda: backend.proxy.cut("reset", at=1))
    assert (told(client("POST", "/rollback_safe/a")), backend.names()) == backend.after_a_cut


@pytest.mark.parametrize("path", ["/unmarked/a", "/never_replay/a"])
def test_write_that_may_not_be_repeated(
    client: Client, backend: Any, script: Any, path: str
) -> None:
    """G3: a POST without a mark, or with @never_replay, runs once and is refused with a 503."""
    script.at(1, "connected", lambda: backend.proxy.cut("reset", at=1))
    script.at(1, "executed", lambda: backend.proxy.cut("reset", at="before-commit"))
    response = client("POST", path)
    assert response.status_code == 503
    assert script.attempts == [1]
    assert backend.names() == []


def test_cut_on_commit(client: Client, backend: Any, script: Any) -> None:
    """G4: a COMMIT whose answer was lost is not replayed; the row is there once."""
    script.at(1, "executed", lambda: backend.proxy.cut("reset", at="commit"))
    response = client("POST", "/rollback_safe/a")
    assert told(response) == (503, "1", "unknown")
    assert "retry-after" not in response.headers
    assert backend.names() == ["a"]
    assert backend.proxy.faults == 1


def test_commit_that_never_arrived(client: Client, backend: Any, script: Any) -> None:
    """G4: a COMMIT that was cut on its way looks the same to us and gets the same answer."""
    script.at(1, "executed", lambda: backend.proxy.cut("reset", at="before-commit"))
    assert told(client("POST", "/rollback_safe/a")) == (503, "1", "unknown")
    assert backend.names() == []


def test_cut_on_commit_of_put(client: Client, backend: Any, script: Any) -> None:
    """G4: an unmarked PUT is not replayed over a lost COMMIT answer either."""
    script.at(1, "executed", lambda: backend.proxy.cut("reset", at="commit"))
    assert told(client("PUT", "/unmarked/a")) == (503, "1", "unknown")
    assert backend.names() == ["a"]


def test_cut_on_commit_of_idempotent(client: Client, backend: Any, script: Any) -> None:
    """G4: an @idempotent endpoint is replayed even when its COMMIT may have been carried out."""
    script.at(1, "executed", lambda: backend.proxy.cut("reset", at="commit"))
    assert told(client("POST", "/idempotent/a")) == (200, "2", "recovered")
    assert backend.names() == ["a"]


def test_stays_failed_inside_the_transaction(client: Client, backend: Any, script: Any) -> None:
    """A statement after the failure fails as well: half a transaction never goes on by itself."""
    script.at(1, "connected", lambda: backend.proxy.cut("reset", at=1))
    replied = told(client("POST", "/stubborn/a"))
    assert len(script.errors) == 2
    assert (replied, backend.names()) == ((200, "2", "recovered"), ["a"])


def test_recovers_after_rollback(client: Client, backend: Any, script: Any) -> None:
    """The requests after a recovered one need no replay: nothing broken is left behind."""
    script.at(1, "connected", lambda: backend.proxy.cut("reset", at=1))
    assert told(client("GET", "/count/x")) == (200, "2", "recovered")
    assert told(client("POST", "/rollback_safe/a")) == (200, None, None)


def test_fails_while_reconnecting(client: Client, backend: Any, script: Any) -> None:
    """A replay that can't connect is a failed attempt like any other, and the next one gets in."""

    def cut() -> None:
        backend.proxy.cut("reset", at=1)
        backend.proxy.cut("reset", at="connect")

    script.at(1, "connected", cut)
    # Where the waiting room pings, it is the ping that can't connect.
    assert told(client("GET", "/count/x")) in [(200, "2", "recovered"), (200, "3", "recovered")]


def test_refused_for_good(client: Client, backend: Any, script: Any) -> None:
    """G2, G10: after five replays the answer is a 503 that says when to come back."""
    with backend.proxy.refuse():
        response = client("POST", "/rollback_safe/a")
    assert told(response) == (503, "6", "exhausted")
    assert int(response.headers["retry-after"]) >= 1
    assert script.attempts == [1, 2, 3, 4, 5, 6]


def test_killed_in_the_transaction(client: Client, backend: Any, script: Any) -> None:
    """A connection that the server ends between two statements is replayed from the start."""
    script.at(1, "connected", backend.server.kill_connections)
    assert (told(client("POST", "/rollback_safe/a")), backend.names()) == backend.after_a_cut


def test_server_is_killed_and_comes_back(client: Client, backend: Any, script: Any) -> None:
    """A server that dies in the middle of a request and is started again costs the client time."""
    script.at(1, "connected", backend.server.kill)

    def start(report: Report) -> None:
        backend.server.start()

    policy = RetryPolicy(wait=tenacity.wait_fixed(0.02), deadline=60)  # to start takes its time
    response = client("POST", "/rollback_safe/a", hooks=[start], policy=policy)
    assert (told(response), backend.names()) == backend.after_a_cut


def test_connections_taken_by_others(client: Client, backend: Any, script: Any) -> None:
    """With every connection taken from outside, a request waits its turn and is answered."""
    failed = threading.Event()
    reports: list[Report] = []
    responses: list[httpx.Response] = []

    def note(report: Report) -> None:
        reports.append(report)
        failed.set()

    policy = RetryPolicy(max_replays=100, wait=tenacity.wait_fixed(0.05), deadline=20)

    def request() -> None:
        responses.append(client("GET", "/count/x", policy=policy, hooks=[note]))

    thread = threading.Thread(target=request)
    with backend.server.fill():
        thread.start()
        assert failed.wait(10)
    thread.join(20)
    (response,) = responses
    assert (response.status_code, response.headers["retry-outcome"]) == (200, "recovered")
    assert response.headers["retry-reason"] == "too-many-connections"
    assert reports[0].failures[0].phase == "connect"


def test_no_connection_is_left(client: Client, backend: Any, script: Any) -> None:
    """G1: neither the failed attempts nor the last one leave a connection behind."""
    script.at(1, "connected", lambda: backend.proxy.cut("fin", at=1))
    client("POST", "/rollback_safe/a")
    backend.proxy.wait_for_connections(0)
