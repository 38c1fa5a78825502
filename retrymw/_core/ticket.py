"""A request in a waiting room, and what is shown of the room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from retrymw._core.failure import Failure

__all__ = ["RoomSnapshot", "RoomState", "Ticket"]

RoomState = Literal["calm", "full", "gone", "recovering"]


class Ticket:
    """A request in a waiting room.

    Args:
        arrived: when the request arrived.
        deadline: when it stops waiting.
        spare: how many failures it can still afford without being lost.

    Attributes:
        due: when its own wait is over.
        early: whether it may be called before that; a conflict's wait is for others to finish.
        state: *waiting*, *running* (let in, not yet out), *leaving* (it has failed, and is being
            undone), or *over*: it is not in the room.
        wake: for the shell.
    """

    __slots__ = ("arrived", "deadline", "due", "early", "spare", "state", "wake")

    def __init__(self, arrived: float, deadline: float, spare: int) -> None:
        self.arrived = arrived
        self.deadline = deadline
        self.spare = spare
        self.due = arrived
        self.early = True
        self.state: Literal["waiting", "running", "leaving", "over"] = "over"
        self.wake: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class RoomSnapshot:
    """A waiting room at one moment.

    Attributes:
        database: the adapter, as the middleware was given it; None for all that is not named.
        state: ``calm``; ``full``: the server, or the pool, gives no more connections than run;
            ``gone``: it is not reached; ``recovering``: it works again, and not all have had their
            turn.
        window: how many requests are let run at once; 0 while nothing is known to work.
        running: how many of those that were let in run.
        waiting: how many wait.
        oldest_wait: how long ago the first of them arrived, in seconds; 0.0 if nobody waits.
        last_failure: the last failure of the database, with its exception.
    """

    database: object
    state: RoomState
    window: int
    running: int
    waiting: int
    oldest_wait: float
    last_failure: Failure | None
