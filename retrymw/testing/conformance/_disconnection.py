"""Storm's disconnection tests, over connections that are cut for real."""

from __future__ import annotations

import threading
from typing import Final

import httpx
import pytest
import tenacity

from retrymw import RetryPolicy, idempotent, never_replay, rollback_safe
from retrymw.testing.conformance._stage import (
    RECOVERED,
    Conformance,
    Endpoint,
    Stage,
    is_first,
    told,
)
from retrymw.typing import Report

__all__ = ["DisconnectionConformance"]

_MOST_STEPS: Final = 30


class DisconnectionConformance(Conformance):
    """A connection is lost at each step of an attempt."""

    @pytest.mark.parametrize("how", ["reset", "fin"])
    def test_cut_on_execute(self, stage: Stage, how: str) -> None:
        """A read whose connection ends in the middle of a statement is replayed."""

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            if is_first():
                stage.proxy.cut(how, at=1)  # type: ignore[arg-type]  # one of the two above
            await stage.execute("SELECT COUNT(*) FROM things")

        assert told(stage.request(endpoint)) == RECOVERED
        assert stage.proxy.faults == 1
        assert told(stage.request(endpoint)) in [RECOVERED, (200, None, None)]
        stage.wait_until_free()

    @pytest.mark.parametrize("at", [1, 2, 3])
    def test_write_is_cut(self, stage: Stage, at: int) -> None:
        """G3: a @rollback_safe write that is cut before its COMMIT takes effect once."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            if is_first():
                stage.proxy.cut("reset", at=at)
            for name in "abc":
                await stage.add(name)
            await stage.commit()

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a", "b", "c"]
        stage.wait_until_free()

    def test_cut_at_every_step(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        """G3, G4: whichever request of the protocol is cut, an order is placed once; only the cut
        of its COMMIT is reported as unknown."""
        # The requests that are counted are the app's, not those of a ping.
        monkeypatch.setattr(stage.subject.database, "ping", lambda: None)
        outcomes: list[str | None] = []

        @rollback_safe
        async def endpoint() -> None:
            for name in "ab":
                await stage.add(name)
            await stage.commit()

        for step in range(1, _MOST_STEPS):
            stage.server.execute("DELETE FROM app.things")
            stage.proxy.cut_all("reset")  # so that connecting is a part of it
            faults = stage.proxy.faults
            stage.proxy.cut("reset", at=step)
            response = stage.request(endpoint, "POST")
            status, _, outcome = told(response)
            if status == 200:
                assert stage.names() == ["a", "b"]
            else:
                assert (status, outcome) == (503, "unknown")
                assert stage.names() in (["a", "b"], [])
                assert "retry-after" not in response.headers
            if stage.proxy.faults == faults:
                break
            outcomes.append(outcome)
        stage.proxy.clear()
        assert outcomes.count("unknown") == 1
        assert outcomes.count("recovered") >= 2
        stage.wait_until_free()

    @pytest.mark.parametrize("mark", [None, never_replay])
    def test_write_that_may_not_be_repeated(self, stage: Stage, mark: object) -> None:
        """G3: a POST without a mark, or with @never_replay, runs once and is refused."""

        async def endpoint() -> None:
            await stage.add("a")
            stage.proxy.cut("reset", at=1)
            await stage.add("b")

        marked = mark(endpoint) if callable(mark) else endpoint
        assert told(stage.request(marked, "POST")) == (503, "1", "not-replayable")
        assert stage.names() == []

    @pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
    @pytest.mark.parametrize("method", ["POST", "PUT"])
    def test_cut_on_commit(self, stage: Stage, method: str, at: str, stored: list[str]) -> None:
        """G4: a COMMIT that was not answered is not replayed, whether it arrived or not."""

        async def endpoint() -> None:
            await stage.add("a")
            stage.proxy.cut("reset", at=at)  # type: ignore[arg-type]  # one of the two above
            await stage.commit()

        marked: Endpoint = rollback_safe(endpoint) if method == "POST" else endpoint
        response = stage.request(marked, method)
        assert told(response) == (503, "1", "unknown")
        assert "retry-after" not in response.headers
        assert stage.names() == stored
        assert stage.proxy.faults == 1
        stage.wait_until_free()

    @pytest.mark.parametrize("at", ["commit", "before-commit"])
    def test_cut_on_commit_of_idempotent(self, stage: Stage, at: str) -> None:
        """G4: an @idempotent endpoint is replayed even if its COMMIT may have been carried out."""

        @idempotent
        async def endpoint() -> None:
            await stage.execute("DELETE FROM things")
            await stage.add("a")
            if is_first():
                stage.proxy.cut("reset", at=at)  # type: ignore[arg-type]  # one of the two above
            await stage.commit()

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a"]

    def test_fails_while_reconnecting(self, stage: Stage) -> None:
        """A replay that can't connect fails like any other attempt, and a later one gets in."""

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            if is_first():
                stage.proxy.cut("reset", at=1)
                stage.proxy.cut("reset", at="connect")
            await stage.execute("SELECT 1")

        response = stage.request(endpoint)
        assert (response.status_code, response.headers["retry-outcome"]) == (200, "recovered")

    def test_refused_for_good(self, stage: Stage) -> None:
        """G2, G10: when no replay is left, the answer is a 503 that says when to come back."""
        attempts: list[int] = []

        @rollback_safe
        async def endpoint() -> None:
            attempts.append(1)
            await stage.execute("SELECT 1")

        policy = RetryPolicy(max_replays=2, wait=tenacity.wait_none(), deadline=60)
        stage.proxy.cut_all("reset")
        with stage.proxy.refuse():
            response = stage.request(endpoint, "POST", policy=policy)
        assert told(response) == (503, "3", "exhausted")
        assert int(response.headers["retry-after"]) >= 1
        assert len(attempts) == 3
        stage.wait_until_free()

    def test_killed_in_the_transaction(self, stage: Stage) -> None:
        """A connection that the server ends between two statements is replayed from the start."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.add("a")
            if is_first():
                stage.server.kill_connections()
            await stage.add("b")
            await stage.commit()

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a", "b"]

    def test_server_is_killed_and_comes_back(self, stage: Stage) -> None:
        """A server that dies in the middle of a request, and is started, costs the client time."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.add("a")
            if is_first():
                stage.server.kill()
            await stage.add("b")
            await stage.commit()

        def start(report: Report) -> None:
            stage.server.start()

        policy = RetryPolicy(wait=tenacity.wait_fixed(0.2), deadline=60)
        response = stage.request(endpoint, "POST", hooks=[start], policy=policy)
        assert (response.status_code, response.headers["retry-outcome"]) == (200, "recovered")
        assert stage.names() == ["a", "b"]

    def test_connections_taken_by_others(self, stage: Stage) -> None:
        """With every connection of the server taken, a request waits its turn and is answered."""
        failed = threading.Event()
        responses: list[httpx.Response] = []

        async def endpoint() -> None:
            await stage.execute("SELECT 1")

        def request() -> None:
            policy = RetryPolicy(max_replays=100, wait=tenacity.wait_fixed(0.05), deadline=20)
            hooks = [lambda report: failed.set()]
            responses.append(stage.request(endpoint, policy=policy, hooks=hooks))

        thread = threading.Thread(target=request)
        with stage.server.fill():
            thread.start()
            assert failed.wait(10)
        thread.join(30)
        (response,) = responses
        assert (response.status_code, response.headers["retry-outcome"]) == (200, "recovered")
