"""How many requests the waiting room lets run at once: found out, not configured.

Rules
=====

1. When a server refuses a connection to one that was let in, what runs besides is what works: that
   is the *proven* size. What is refused below it is no news: the server may not have let go of an
   earlier connection yet, or others were faster. The window shrinks, and what is proven with it,
   but by and by.
2. Nobody is let in after a refusal until somebody has come out, or for a while.
3. Requests that were under way before the room opened count as well: each of them that works makes
   room for one, so that what is in flight stays what it was. Where that turns out to be wrong (they
   queue for the connections of a pool, say, and take what comes free), they count for less.
4. A window that is full, and works, grows: by ``_EAGERNESS`` divided by its size while so many
   requests come out, and by twice as much after each time that this went well. So the smaller of
   two windows grows faster, and the larger one gives up more: processes that share a server come
   to equal shares.
5. A window that was shut because the database was gone opens for ``_OPENING``, or for as many as
   were proven if these are fewer, and then for one more with each success, until a refusal says
   where the end is.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Window"]

_OPENING: Final = 8
_EAGERNESS: Final = 6.0
_SHRINK: Final = 0.1  # of the window, with every refusal
_DOUBT: Final = 0.01  # of what is proven, with every refusal below it
_SURE: Final = 0.99  # so that it takes a few of these before it is one less


class Window:
    """See the top of this module.

    Attributes:
        size: how many may run; below 1 while nothing is known to work.
        proven: how many are known to work; 0 if that is not known.
        held: whether a refusal keeps everybody out until somebody has come out.
        successes: of those let in, since one was refused.
    """

    __slots__ = ("_clean", "_step", "_trust", "held", "proven", "size", "successes")

    def __init__(self) -> None:
        self.size = self.proven = 0.0
        self.held = False
        self.successes = 1
        self._step = _EAGERNESS  # by how much it grows while it comes out once
        self._clean = 0.0  # successes since the last refusal, or since the step was doubled
        self._trust = 1.0  # how much room one makes that was not let in

    def has_room(self, running: int) -> bool:
        """Whether one more may be let in while so many run."""
        return running < int(self.size) and not self.held

    def shut(self) -> None:
        """The database is gone: nothing is known to work any more."""
        self.proven = max(self.proven, self.size)
        self.size = 0.0

    def refused(self, running: int) -> None:
        """There was no connection for one that was let in, while so many others ran."""
        if running >= int(self.proven):
            self.proven = running + _SURE
        else:
            self.proven = max(float(running), self.proven * (1.0 - _DOUBT))
        if self.size >= 1:
            self._trust /= 2.0
        self.size = min(self.size, max(float(running), self.size * (1.0 - _SHRINK)))
        self._step = _EAGERNESS / max(1.0, self.size)
        self._clean = 0.0
        if not running:
            self.size = 0.0
        self.successes = 0
        self.held = True

    def worked(self, running: int, *, wanted: bool, full: bool) -> None:
        """One that was let in has worked.

        Args:
            running: how many ran, with this one.
            wanted: whether others wait.
            full: whether the trouble is a shortage.
        """
        self.held = False
        if self.size < 1:
            self.open(full=full)
        elif wanted and running >= int(self.size):
            self._grow(running, full=full)
        self.successes += 1
        self._trust = 1.0

    def makes_room(self) -> None:
        """One that was not let in has worked."""
        self.held = False
        self.size += self._trust

    def open(self, *, full: bool) -> None:
        """The first success."""
        if full:
            self.size, self._step = 1.0, _EAGERNESS
        else:
            self.size = max(1.0, min(self.proven or _OPENING, _OPENING))
            self._step = _EAGERNESS / self.proven if self.proven else math.inf
        self._clean = 0.0
        self.held = False

    def _grow(self, running: int, *, full: bool) -> None:
        if running > int(self.size):  # somebody found out, and it worked
            self.size = float(running)
        elif self.size < int(self.proven) and not full:
            self.size += 1.0
        else:
            self.size += min(1.0, self._step / self.size)
            self._clean += 1.0
            if self._clean >= self.size:
                self._clean = 0.0
                self._step *= 2.0
                self.proven = max(self.proven, int(self.size) + _SURE)
