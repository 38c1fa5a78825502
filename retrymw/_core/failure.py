"""A failure: what ``classify`` makes of an exception."""

from __future__ import annotations

from dataclasses import dataclass

from retrymw.exceptions import Kind, Phase

__all__ = ["KINDS", "Failure", "Kind", "Phase"]

KINDS: frozenset[Kind] = frozenset({"disconnection", "too-many-connections", "conflict"})


@dataclass(frozen=True, slots=True)
class Failure:
    """The database's part in an exception.

    Attributes:
        kind: what happened.
        phase: where it struck; ``unknown`` when a COMMIT can't be ruled out.
        exception: the original exception object (G7).
        code: the server's or driver's code (``1040``, ``"57P01"``), if there was one.
        driver: the package the exception came from (``"pymysql"``).
    """

    kind: Kind
    phase: Phase
    exception: BaseException
    code: int | str | None = None
    driver: str | None = None

    @property
    def leaves_commit_unknown(self) -> bool:
        """Whether a COMMIT may have been sent whose answer never came (G4).

        A conflict or a refusal is an answer: the server said that it did not commit.
        """
        return self.kind == "disconnection" and self.phase in ("commit", "unknown")
