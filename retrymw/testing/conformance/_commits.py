"""Commits: not yet, answered, or sent and never answered (G4)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from retrymw import idempotent, rollback_safe
from retrymw.testing.conformance._stage import (
    RECOVERED,
    Conformance,
    Endpoint,
    Stage,
    is_first,
    told,
)

__all__ = ["CommitConformance"]

Mark = Callable[[Endpoint], Endpoint]


class CommitConformance(Conformance):
    """What the adapter tells of commits, and what may be replayed by that."""

    @pytest.mark.parametrize("sql", [False, True], ids=["commit()", "SQL"])
    def test_lost_answer_to_a_commit(self, stage: Stage, sql: bool) -> None:
        """G4: a COMMIT whose answer was lost makes the outcome unknown, even if it is swallowed."""

        @rollback_safe
        async def endpoint() -> object:
            await stage.add("a")
            stage.proxy.cut("reset", at="commit")
            try:
                await (stage.execute("COMMIT") if sql else stage.commit())
            except Exception:  # noqa: BLE001  # apps do that
                return 500
            return "fine"

        response = stage.request(endpoint, "POST")
        assert told(response) == (503, "1", "unknown")
        assert "retry-after" not in response.headers
        assert stage.names() == ["a"]

    @pytest.mark.parametrize(
        ("mark", "expected"), [(rollback_safe, (503, "1", "committed")), (idempotent, RECOVERED)]
    )
    def test_failure_after_a_commit(
        self, stage: Stage, mark: Mark, expected: tuple[int, str, str]
    ) -> None:
        """G4: after an answered COMMIT only an @idempotent endpoint is replayed."""

        async def endpoint() -> None:
            await stage.execute("DELETE FROM things")
            await stage.add("a")
            await stage.commit()
            if is_first():
                stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        response = stage.request(mark(endpoint), "POST")
        assert told(response) == expected
        assert "retry-after" not in response.headers
        assert stage.names() == ["a"]

    def test_second_transaction_is_lost(self, stage: Stage) -> None:
        """G4: what fails in a second transaction is not replayed: the first one is done."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.add("a")
            await stage.commit()
            await stage.add("b")
            stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        assert told(stage.request(endpoint, "POST")) == (503, "1", "committed")
        assert stage.names() == ["a"]

    def test_commit_of_nothing(self, stage: Stage) -> None:
        """G3: a COMMIT after nothing but reading commits nothing: what fails later is replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.execute("SELECT COUNT(*) FROM things")
            await stage.commit()
            await stage.execute("SELECT COUNT(*) FROM things")
            if is_first():
                stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT COUNT(*) FROM things")

        assert told(stage.request(endpoint, "POST")) == RECOVERED

    def test_rolled_back_by_the_app(self, stage: Stage) -> None:
        """G3: what the app rolled back by itself is not committed, so what fails is replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await stage.add("a")
            await stage.rollback()
            await stage.execute("SELECT COUNT(*) FROM things")
            if is_first():
                stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT COUNT(*) FROM things")

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == []
