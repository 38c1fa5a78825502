"""The state of an attempt: its own, opened late, undone in time, given back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import anyio
import anyio.to_thread
import pytest
import tenacity

from retrymw import RetryPolicy, classify, current_attempt, rollback_safe
from retrymw.testing.conformance._stage import (
    RECOVERED,
    Conformance,
    Stage,
    in_context,
    is_first,
    told,
    under,
)
from retrymw.typing import Report

__all__ = ["StateConformance"]

_PATIENT: Final = RetryPolicy(max_replays=100, wait=tenacity.wait_fixed(0.05), deadline=20)


class StateConformance(Conformance):
    """What belongs to an attempt, and when it is opened, undone and given back."""

    def test_one_connection_for_the_whole_attempt(self, stage: Stage) -> None:
        """G1: whatever thread or task of the attempt asks, it gets the attempt's connection."""
        seen: list[Any] = []

        async def ask() -> None:
            seen.append((await stage.execute(stage.identity))[0][0])

        async def endpoint() -> None:
            await ask()
            if stage.shell == "asgi":
                async with anyio.create_task_group() as group:
                    group.start_soon(ask)
            await ask()

        assert told(stage.request(endpoint)) == (200, None, None)
        assert len(set(seen)) == 1

    def test_opened_on_first_use(self, stage: Stage) -> None:
        """A connection is held from its first use to the end of the attempt, and not before."""
        seen: list[int] = []

        async def endpoint() -> None:
            seen.append(stage.in_use)
            await stage.execute("SELECT 1")
            seen.append(stage.in_use)

        assert stage.request(endpoint).status_code == 200
        assert seen == [0, 1]
        stage.wait_until_free()

    def test_undone_and_given_back_before_the_wait(self, stage: Stage) -> None:
        """G1, G8: before a failed attempt waits, its locks and its connection are free."""
        seen: list[list[str]] = []

        @rollback_safe
        async def endpoint() -> None:
            await stage.add("a")
            if is_first():
                await stage.execute(stage.conflict)
            await stage.commit()

        def note(report: Report) -> None:
            if report.outcome is None:
                stage.wait_until_free()
                stage.server.execute("INSERT INTO app.things VALUES ('a')")  # not locked
                stage.server.execute("DELETE FROM app.things")
                seen.append(stage.names())

        assert told(stage.request(endpoint, "POST", hooks=[note])) == RECOVERED
        assert (seen, stage.names()) == ([[]], ["a"])

    def test_uncommitted_work_is_undone(self, stage: Stage) -> None:
        """G1: what one request does not commit, the next one does not commit either."""

        async def forget() -> None:
            await stage.add("forgotten")

        async def commit() -> None:
            await stage.execute("SELECT 1")
            await stage.commit()

        for endpoint in (forget, commit):
            assert told(stage.request(endpoint, "POST")) == (200, None, None)
        assert stage.names() == []

    def test_error_of_the_app(self, stage: Stage) -> None:
        """G1, G5: an exception that is not ours passes, and the transaction is undone."""

        async def endpoint() -> None:
            await stage.add("half")
            raise LookupError("a bug")

        with pytest.raises(LookupError, match="a bug"):
            stage.request(endpoint, "POST")
        stage.wait_until_free()
        assert stage.names() == []

    def test_unknown_to_the_middleware(self, stage: Stage) -> None:
        """A middleware that was not given the database refuses at once, with the fix."""

        async def endpoint() -> None:
            await stage.execute("SELECT 1")

        with pytest.raises(RuntimeError, match=r"databases=\["):
            stage.request(endpoint, databases=[])
        stage.wait_until_free()

    def test_code_that_outlives_its_attempt(self, stage: Stage) -> None:
        """G1: a thread or task that goes on after the response gets no connection of it."""
        over = threading.Event()
        late: Future[None] = Future()

        def thread() -> None:
            over.wait(10)
            try:
                stage.subject.execute("SELECT 1")
            except RuntimeError as error:
                late.set_exception(error)

        async def task() -> None:
            await anyio.to_thread.run_sync(over.wait, 10)
            try:
                await stage.execute("SELECT 1")
            except RuntimeError as error:
                late.set_exception(error)

        tasks: list[asyncio.Task[None]] = []

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            if stage.subject.is_async:
                tasks.append(asyncio.create_task(task()))
            else:
                threading.Thread(target=in_context(thread)).start()

        assert stage.request(endpoint).status_code == 200
        over.set()
        with pytest.raises(RuntimeError, match="is over"):
            late.result(10)
        stage.wait_until_free()

    def test_rollback_is_bounded(self, stage: Stage) -> None:
        """G2, G7: a server that falls silent holds the rollback up, but not for ever, and the
        cause passes; meanwhile the event loop goes on."""

        async def endpoint() -> None:
            await stage.add("a")
            stage.proxy.cut("blackhole", at=1)
            raise LookupError("a bug")

        with _ticking(stage) as gaps:
            start = monotonic()
            with pytest.raises(LookupError, match="a bug"):
                stage.request(endpoint, "POST")
            assert monotonic() - start < 12
        assert max(gaps) < 1.5
        stage.proxy.cut_all("reset")
        stage.wait_until_free()
        assert stage.names() == []

    @under("asgi")
    def test_cancelled(self, stage: Stage) -> None:
        """G6: a request that is cancelled in the middle of a statement ends soon, and what it used
        goes to nobody else."""
        ended = threading.Event()

        async def endpoint() -> None:
            await stage.add("a")
            await stage.execute(stage.sleep(20))

        async def send() -> None:
            try:
                await stage.asgi(endpoint, "POST", {})
            finally:
                ended.set()

        async def read() -> None:
            await stage.execute("SELECT 1")

        request = stage.portal.start_task_soon(send)
        stage.server.wait_for_sleep()
        request.cancel()
        assert ended.wait(12)
        stage.wait_until_free()
        assert told(stage.request(read)) == (200, None, None)
        assert stage.names() == []

    def test_ping(self, stage: Stage) -> None:
        """ping() is quiet while the database can be worked with, and leaves nothing behind."""
        ping = stage.subject.database.ping

        def call() -> None:
            stage.portal.call(ping) if stage.subject.is_async else ping()

        call()
        stage.wait_until_free()
        stage.proxy.cut_all("reset")
        with stage.proxy.refuse(), pytest.raises(Exception) as raised:  # noqa: PT011  # any of ours
            call()
        assert classify.classify(raised.value) is not None
        stage.wait_until_free()

    def test_shortage(self, stage: Stage) -> None:
        """With more requests than connections, a pool that runs dry is waited out."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.execute(stage.sleep(0.5))

        responses = stage.requests([endpoint] * 6, policy=_PATIENT)
        assert {response.status_code for response in responses} == {200}
        if stage.subject.in_use is not None:
            reasons = {response.headers.get("retry-reason") for response in responses}
            assert reasons == {None, "too-many-connections"}
        stage.wait_until_free()

    def test_after_a_restart(self, stage: Stage) -> None:
        """After a restart of the server one replay is enough, however many connections were
        idle."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.execute(stage.sleep(0.2))

        async def read() -> None:
            await stage.execute("SELECT 1")

        stage.requests([endpoint] * 2, policy=_PATIENT)
        stage.server.kill()
        stage.server.start()
        assert told(stage.request(read)) in [RECOVERED, (200, None, None)]
        assert told(stage.request(read)) == (200, None, None)

    def test_many_at_once(self, stage: Stage) -> None:
        """Each of many requests at once stores its own row, once."""

        def adding(name: str) -> Any:
            @rollback_safe
            async def endpoint() -> None:
                await stage.add(name)
                await stage.commit()

            return endpoint

        names = [f"{number:02}" for number in range(20)]
        responses = stage.requests([adding(name) for name in names], policy=_PATIENT)
        assert {response.status_code for response in responses} == {200}
        assert stage.names() == names
        stage.wait_until_free()

    def test_outbox(self, stage: Stage) -> None:
        """on_success callbacks run once, for the attempt that was sent, and for no other."""
        sent: list[int] = []

        async def endpoint() -> None:
            attempt = current_attempt()
            attempt.on_success(lambda: sent.append(attempt.number))
            if is_first():
                await stage.execute(stage.conflict)

        assert told(stage.request(endpoint)) == RECOVERED
        assert sent == [2]


@contextmanager
def _ticking(stage: Stage) -> Iterator[list[float]]:
    """How long the event loop was kept from going on, each time, in seconds."""
    gaps: list[float] = []
    over = threading.Event()

    async def tick() -> None:
        last = monotonic()
        while not over.is_set():
            await anyio.sleep(0.01)
            now = monotonic()
            gaps.append(now - last)
            last = now

    task = stage.portal.start_task_soon(tick)
    try:
        yield gaps
    finally:
        over.set()
        task.result(10)
