"""The unit of work: ``commit="on-success"``."""

from __future__ import annotations

from contextlib import suppress

import pytest

from retrymw import idempotent, rollback_safe
from retrymw.testing.conformance._stage import RECOVERED, Conformance, Stage, is_first, told

__all__ = ["UnitOfWorkConformance"]


class UnitOfWorkConformance(Conformance):
    """For adapters with ``commit="on-success"``: what the subject's ``unit`` does."""

    @pytest.fixture
    def unit(self, stage: Stage) -> Stage:
        """A stage for the subject's ``unit``."""
        unit = stage.subject.unit
        assert unit is not None, "the subject has no unit"
        return Stage(unit, stage.shell, stage.server, stage.proxy, stage.portal)

    def test_committed_before_the_first_byte(self, unit: Stage) -> None:
        """When the response begins, what the endpoint did is stored."""
        seen: list[list[str]] = []

        @rollback_safe
        async def endpoint() -> None:
            await unit.add("a")
            assert unit.names() == []

        response = unit.request(endpoint, "POST", seen=lambda: seen.append(unit.names()))
        assert told(response) == (200, None, None)
        assert seen == [["a"]]
        unit.wait_until_free()

    @pytest.mark.parametrize("status", [400, 500])
    def test_rolled_back_by_status(self, unit: Stage, status: int) -> None:
        """A response of 400 or more rolls back."""

        async def endpoint() -> int:
            await unit.add("a")
            return status

        assert unit.request(endpoint, "POST").status_code == status
        unit.wait_until_free()
        assert unit.names() == []

    def test_rolled_back_by_an_exception(self, unit: Stage) -> None:
        """An exception rolls back."""

        async def endpoint() -> None:
            await unit.add("a")
            raise LookupError("a bug")

        with pytest.raises(LookupError):
            unit.request(endpoint, "POST")
        unit.wait_until_free()
        assert unit.names() == []

    def test_cut_before_the_commit(self, unit: Stage) -> None:
        """G3: an attempt that is cut in a statement is replayed, and takes effect once."""

        @rollback_safe
        async def endpoint() -> None:
            await unit.add("a")
            if is_first():
                unit.proxy.cut("reset", at=1)
            await unit.add("b")

        assert told(unit.request(endpoint, "POST")) == RECOVERED
        assert unit.names() == ["a", "b"]

    @pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
    def test_lost_commit(self, unit: Stage, at: str, stored: list[str]) -> None:
        """G4: a commit that was not answered is a failed attempt of unknown outcome, not a 200."""

        @rollback_safe
        async def endpoint() -> str:
            await unit.add("a")
            unit.proxy.cut("reset", at=at)  # type: ignore[arg-type]  # one of the two above
            return "fine"

        response = unit.request(endpoint, "POST")
        assert told(response) == (503, "1", "unknown")
        assert "retry-after" not in response.headers
        assert unit.names() == stored

    def test_refused_statement_that_was_swallowed(self, unit: Stage) -> None:
        """G4: where a refused statement has spoilt the transaction, no 200 says that it is stored.

        PostgreSQL answers such a COMMIT with a rollback, which no driver takes for an error.
        """

        async def endpoint() -> None:
            await unit.add("a")
            with suppress(Exception):
                await unit.add("a")  # a duplicate

        try:
            stored = unit.request(endpoint, "POST").status_code == 200
        except Exception:  # noqa: BLE001  # the driver's, or the layer's
            stored = False
        assert unit.names() == (["a"] if stored else [])
        unit.wait_until_free()

    def test_lost_commit_of_idempotent(self, unit: Stage) -> None:
        """G4: a commit that was not answered is done again if the endpoint is @idempotent."""

        @idempotent
        async def endpoint() -> None:
            await unit.execute("DELETE FROM things")
            await unit.add("a")
            if is_first():
                unit.proxy.cut("reset", at="commit")

        assert told(unit.request(endpoint, "POST")) == RECOVERED
        assert unit.names() == ["a"]
