"""Doom: what the app swallows is known all the same, and half a transaction never goes on."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import suppress

import pytest

from retrymw import rollback_safe
from retrymw.testing.conformance._stage import RECOVERED, Conformance, Stage, is_first, told

__all__ = ["DoomConformance"]


class DoomConformance(Conformance):
    """What becomes of an attempt whose app deals with a failure by itself."""

    @pytest.mark.parametrize("status", [500, 503])
    def test_squashed_failure_is_replayed(self, stage: Stage, status: int) -> None:
        """A failure that the app made a 5xx of is replayed all the same."""

        async def endpoint() -> object:
            if is_first():
                await stage.execute("SELECT 1")
                stage.proxy.cut("reset", at=1)
            with suppress(Exception):
                await stage.execute("SELECT 1")
                return "fine"
            return status

        response = stage.request(endpoint)
        assert (response.text, told(response)) == ("fine", RECOVERED)

    def test_handled_failure_is_sent(self, stage: Stage) -> None:
        """A failure that the app answered with less than a 500 is the app's own business."""

        async def endpoint() -> str:
            await stage.execute("SELECT 1")
            stage.proxy.cut("reset", at=1)
            with suppress(Exception):
                await stage.execute("SELECT 1")
            return "from the cache"

        response = stage.request(endpoint)
        assert (response.text, told(response)) == ("from the cache", (200, None, None))
        stage.wait_until_free()

    def test_failed_connect_is_squashed(self, stage: Stage) -> None:
        """A connect that failed, and that the app made a 500 of, is known as well."""

        async def endpoint() -> object:
            with suppress(Exception):
                await stage.execute("SELECT 1")
                return "fine"
            return 500

        stage.proxy.cut_all("reset")
        stage.proxy.cut("reset", at="connect")
        response = stage.request(endpoint)
        assert (response.text, response.status_code) == ("fine", 200)
        assert response.headers["retry-outcome"] == "recovered"

    def test_transaction_that_failed_does_not_go_on(self, stage: Stage) -> None:
        """After a failure each statement, and the commit, raises that very failure."""
        errors: list[Exception] = []

        @rollback_safe
        async def endpoint() -> object:
            if not is_first():
                await stage.add("second attempt")
                await stage.commit()
                return "fine"
            await stage.add("first half")
            errors.append(await _failure_of(stage.execute(stage.conflict)))
            errors.append(await _failure_of(stage.add("second half")))
            errors.append(await _failure_of(stage.execute("SELECT 1")))
            errors.append(await _failure_of(stage.commit()))
            return 500

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert len(errors) == 4
        assert {id(error) for error in errors} == {id(errors[0])}
        assert stage.names() == ["second attempt"]

    def test_transaction_that_was_lost_does_not_go_on(self, stage: Stage) -> None:
        """After a loss no statement opens another connection to write the second half there."""
        errors: list[Exception] = []

        @rollback_safe
        async def endpoint() -> object:
            await stage.add("first half")
            if not is_first():
                await stage.commit()
                return "fine"
            stage.proxy.cut("reset", at=1)
            errors.append(await _failure_of(stage.execute("SELECT 1")))
            errors.append(await _failure_of(stage.add("second half")))
            errors.append(await _failure_of(stage.commit()))
            return 500

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert len(errors) == 3
        assert {id(error) for error in errors} == {id(errors[0])}
        assert stage.names() == ["first half"]

    def test_goes_on_after_a_rollback(self, stage: Stage) -> None:
        """An app that rolls back by itself may go on, and its answer is sent."""

        async def endpoint() -> None:
            await stage.add("first half")
            with suppress(Exception):
                await stage.execute(stage.conflict)
            await stage.rollback()
            await stage.add("anew")
            await stage.commit()

        assert told(stage.request(endpoint, "POST")) == (200, None, None)
        assert stage.names() == ["anew"]


async def _failure_of(action: Awaitable[object]) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one it is, the test asks
        await action
    return raised.value
