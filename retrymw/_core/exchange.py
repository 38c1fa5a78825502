"""The exchange: one request and its response, with all its attempts, as a machine without I/O.

Rules
=====

1. The app runs at most ``1 + max_replays`` times; no attempt starts after the deadline (G2).
2. What is sealed is never replayed: the response was released to the client, or the recording of
   the request body was dropped (G2).
3. A failure is replayed only where ``MAY_REPLAY`` says so (G3, G4).
4. A response below 500 is sent, whatever a database layer saw: the app dealt with it.
5. What failed with a failure of ours and is not replayed is refused with a 503 that says why; never
   a bare 500. Once the response was released there is nothing left to say: the exception passes.
6. What is not ours passes untouched (G5).
7. A fence holds for the exchange; a doom and what was committed hold for their attempt.

Theory of operation
===================

A shell owns one exchange per request. It calls ``begin`` before each attempt, reports what happens
during it (``seal``, ``fence``, ``doom``, ``commit_sent``, ``commit_answered``), and calls ``ended``
when the app returned or raised. ``ended`` answers with one command, which the shell obeys:

=============  =================================================================================
Send           send what is held, if anything is; the exchange is over
Raise          send what is held, then raise what the app raised; the exchange is over
Replay(after)  roll back, release, wait in the room, that long if alone, then ``begin`` again
Refuse(...)    roll back, release, answer 503; the exchange is over
=============  =================================================================================

``begin`` may answer ``Refuse`` as well: rolling back and waiting take time, and the deadline may
have passed meanwhile. The clock is the caller's: every ``now`` is in seconds, from any monotonic
origin. Waits come from the policy's strategy, evaluated here and only on the failure path.

What the commit column of the table is, in the order of precedence:

- UNKNOWN: a COMMIT was sent and not answered, says an adapter; or the failure itself struck in
  the commit, or may have (``Failure.leaves_commit_unknown``).
- SEEN: a COMMIT was answered in this attempt.
- NONE: neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from retrymw._core.failure import Failure
from retrymw._core.policy import SAFE_METHODS, Mark, MarkKind, RetryPolicy
from retrymw._core.ticket import RoomSnapshot

__all__ = [
    "MAY_REPLAY",
    "ROWS_OF_MARKS",
    "WITHOUT_RETRY_AFTER",
    "Command",
    "Commit",
    "Exchange",
    "Outcome",
    "Raise",
    "Refuse",
    "Replay",
    "Report",
    "Row",
    "Sealed",
    "Send",
]

Outcome = Literal[
    "recovered",
    "exhausted",
    "deadline",
    "overload",
    "not-replayable",
    "committed",
    "unknown",
    "sealed",
    "abandoned",
]
"""How an exchange in which something failed ended; ``abandoned``: the client had left."""


Sealed = Literal["response", "recording"]
"""What keeps a replay from following: the response is out, or the recording of the body is gone."""


class Row(Enum):
    """What an endpoint is, as far as repeating it goes."""

    SAFE = "safe method"
    REPEATABLE = "PUT, DELETE, unmarked"
    UNMARKED = "POST, PATCH, other, unmarked"
    ROLLBACK_SAFE = "@rollback_safe"
    IDEMPOTENT = "@idempotent"
    NEVER = "@never_replay, or a fence was set"


class Commit(Enum):
    """What is known of commits in the attempt that failed."""

    NONE = "before any commit"
    SEEN = "after a commit was seen"
    UNKNOWN = "COMMIT sent, answer lost"


MAY_REPLAY: Final[dict[Row, dict[Commit, bool]]] = {
    Row.SAFE: {Commit.NONE: True, Commit.SEEN: True, Commit.UNKNOWN: True},
    Row.REPEATABLE: {Commit.NONE: True, Commit.SEEN: False, Commit.UNKNOWN: False},
    Row.UNMARKED: {Commit.NONE: False, Commit.SEEN: False, Commit.UNKNOWN: False},
    Row.ROLLBACK_SAFE: {Commit.NONE: True, Commit.SEEN: False, Commit.UNKNOWN: False},
    Row.IDEMPOTENT: {Commit.NONE: True, Commit.SEEN: True, Commit.UNKNOWN: True},
    Row.NEVER: {Commit.NONE: False, Commit.SEEN: False, Commit.UNKNOWN: False},
}

ROWS_OF_MARKS: Final[dict[MarkKind, Row]] = {
    MarkKind.IDEMPOTENT: Row.IDEMPOTENT,
    MarkKind.ROLLBACK_SAFE: Row.ROLLBACK_SAFE,
    MarkKind.NEVER_REPLAY: Row.NEVER,
}

REFUSALS: Final[dict[Commit, Outcome]] = {
    Commit.NONE: "not-replayable",
    Commit.SEEN: "committed",
    Commit.UNKNOWN: "unknown",
}

# Coming back is not the advice where the work may have been done already (G4).
WITHOUT_RETRY_AFTER: Final[frozenset[Outcome]] = frozenset({"committed", "unknown"})


@dataclass(frozen=True, slots=True)
class Send:
    """Send what is held."""


@dataclass(frozen=True, slots=True)
class Raise:
    """Send what is held, then raise what the app raised."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Undo the attempt, wait, run the app again.

    ``after`` is the request's own wait, in seconds; the waiting room may call it earlier.
    """

    after: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Undo the attempt and answer 503.

    ``retry_after`` is in seconds, before jitter; None where coming back is not the advice.
    """

    outcome: Outcome
    retry_after: float | None


Command = Send | Raise | Replay | Refuse

SEND, RAISE = Send(), Raise()


@dataclass(frozen=True, slots=True)
class Report:
    """What the log and the hooks are told of an exchange in which something failed.

    Attributes:
        method, path: of the request.
        attempts: how often the app ran; 0 if the request waited its turn in vain.
        failures: one per failed attempt, oldest first; without an attempt, what it waited for.
        outcome: how the exchange ended; None while it goes on.
        elapsed: seconds since the request arrived.
        next_in: seconds until the next attempt if nothing happens before; None when there is none.
        fence: why the app set a fence, if it did.
        room: the waiting room of the database that failed.
    """

    method: str
    path: str
    attempts: int
    failures: tuple[Failure, ...]
    outcome: Outcome | None
    elapsed: float
    next_in: float | None = None
    fence: str | None = None
    room: RoomSnapshot | None = None


class Exchange:
    """One request and its response, with all its attempts. See the top of this module."""

    __slots__ = (
        "_commits_open",
        "_commits_seen",
        "base_policy",
        "dooms",
        "failures",
        "fenced",
        "key",
        "mark",
        "method",
        "number",
        "outcome",
        "sealed",
        "started",
    )

    def __init__(self, policy: RetryPolicy, method: str, now: float) -> None:
        self.base_policy = policy
        self.method = method
        self.started = now
        self.number = 1  # the first attempt begins with the exchange
        self.mark: Mark | None = None
        self.key: str | None = None
        self.failures: tuple[Failure, ...] = ()
        self.outcome: Outcome | None = None
        self.fenced: str | None = None
        self.sealed: Sealed | None = None
        self.dooms: tuple[Failure, ...] = ()
        self._commits_open = 0
        self._commits_seen = False

    # What happens during an attempt.

    def seal(self, by: Sealed) -> None:
        """No replay any more. A released response outweighs a dropped recording."""
        if self.sealed != "response":
            self.sealed = by
        if by == "response" and self.failures:
            self.outcome = "recovered"

    def fence(self, reason: str) -> None:
        """The app went past a point after which this request must not run again."""
        self.fenced = self.fenced or reason

    def doom(self, failure: Failure) -> None:
        """A database layer saw a failure; a lost COMMIT stays lost whatever comes after it."""
        if all(doom.kind != failure.kind for doom in self.dooms):  # the first of a kind will do
            self.dooms += (failure,)
        if failure.leaves_commit_unknown:
            self._commits_open += 1

    def commit_sent(self) -> None:
        """A COMMIT is on its way."""
        self._commits_open += 1

    def commit_answered(self, *, committed: bool) -> None:
        """The server answered the COMMIT: done, or not."""
        self._commits_open = max(0, self._commits_open - 1)
        self._commits_seen = self._commits_seen or committed

    # What becomes of it.

    @property
    def policy(self) -> RetryPolicy:
        """The policy with the mark's overrides."""
        return self.base_policy.overridden(self.mark)

    @property
    def row(self) -> Row:
        """The row of ``MAY_REPLAY`` that this exchange is in."""
        marked = ROWS_OF_MARKS[self.mark.kind] if self.mark is not None else None
        if self.fenced is not None or marked is Row.NEVER:
            return Row.NEVER
        if marked is Row.IDEMPOTENT:
            return Row.IDEMPOTENT
        if self.method in self.base_policy.methods and self.method in SAFE_METHODS:
            return Row.SAFE
        if marked is not None:
            return marked
        return Row.REPEATABLE if self.method in self.base_policy.methods else Row.UNMARKED

    @property
    def may_replay_again(self) -> bool:
        """Whether a replay could follow this attempt, as far as is known now."""
        return (
            self.sealed is None
            and self.number <= self.policy.max_replays
            and MAY_REPLAY[self.row][self.commit]
        )

    @property
    def commit(self) -> Commit:
        """The column of ``MAY_REPLAY`` that this attempt is in by now."""
        if self._commits_open > 0:
            return Commit.UNKNOWN
        return Commit.SEEN if self._commits_seen else Commit.NONE

    def ended(
        self,
        now: float,
        *,
        failure: Failure | None,
        raised: bool,
        status: int | None,
    ) -> Command:
        """The attempt is over: what to do.

        Args:
            now: the time, in seconds.
            failure: what ``classify`` made of what the app raised, if it raised.
            raised: whether it raised.
            status: of the response the app started, if it did.
        """
        passing: Command = RAISE if raised else SEND
        policy = self.policy
        seen = self.dooms if failure is None else (failure, *self.dooms)
        lost = any(failure.leaves_commit_unknown for failure in seen)
        failure = next((failure for failure in seen if failure.kind in policy.kinds), None)
        if failure is None:
            return self._finish(passing)
        if not raised and status is not None and status < 500:
            return self._finish(passing)
        self.failures += (failure,)
        if self.sealed == "response":
            self.outcome = "sealed"
            return passing
        wait = policy.wait_before(self.number, failure)
        commit = Commit.UNKNOWN if lost else self.commit
        if not MAY_REPLAY[self.row][commit]:
            return self.refuse(REFUSALS[commit], wait)
        if self.sealed == "recording":
            return self.refuse("sealed", wait)
        if self.number > policy.max_replays:
            return self.refuse("exhausted", wait)
        if now >= self.started + policy.deadline:
            return self.refuse("deadline", wait)
        return Replay(wait)

    def begin(self, now: float) -> Refuse | None:
        """The next attempt begins, or is refused because the deadline has passed."""
        policy = self.policy
        outcome: Outcome | None = None
        if self.row is Row.NEVER:  # a fence was set while the request waited
            outcome = "not-replayable"
        elif now >= self.started + policy.deadline:
            outcome = "deadline"
        if outcome is not None:
            return self.refuse(outcome, policy.wait_before(self.number, self.failures[-1]))
        self.number += 1
        self.dooms = ()
        self._commits_open = 0
        self._commits_seen = False
        return None

    def refuse(self, outcome: Outcome, wait: float) -> Refuse:
        """The exchange ends without a replay; ``wait`` is in seconds, for ``Retry-After``."""
        self.outcome = outcome
        return Refuse(outcome, None if outcome in WITHOUT_RETRY_AFTER else wait)

    def give_up(self, outcome: Outcome, awaited: Failure | None) -> Refuse:
        """The request has waited in vain; without an attempt of its own for ``awaited`` to end."""
        if not self.failures and awaited is not None:
            self.number = 0
            self.failures = (awaited,)
        wait = self.policy.wait_before(max(1, self.number), self.failures[-1])
        return self.refuse(outcome, wait)

    def abandon(self) -> None:
        """The client has gone: the exchange ends without an answer (G6).

        What may have been committed all the same stays said, for the log.
        """
        if self.outcome not in WITHOUT_RETRY_AFTER:
            self.outcome = "abandoned"

    def report(
        self,
        now: float,
        path: str,
        next_in: float | None = None,
        room: RoomSnapshot | None = None,
    ) -> Report:
        """What the log and the hooks are told."""
        return Report(
            method=self.method,
            path=path,
            attempts=self.number,
            failures=self.failures,
            outcome=self.outcome,
            elapsed=now - self.started,
            next_in=next_in,
            fence=self.fenced,
            room=room,
        )

    def _finish(self, command: Command) -> Command:
        if self.failures:
            self.outcome = "recovered"
        return command
