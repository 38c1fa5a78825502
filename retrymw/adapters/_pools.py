"""Raw connections from a pool of SQLAlchemy's, or from none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Home", "Pool", "PoolFactory"]


class Pool(Protocol):
    """What is used of a ``sqlalchemy.pool.Pool``."""

    def connect(self) -> Any: ...
    def recreate(self) -> Any: ...
    def dispose(self) -> None: ...


PoolFactory = Callable[[Callable[[], Any]], Pool]


class Home:
    """Where raw connections come from.

    Attributes:
        connect_directly: opens one that is no pool's.
        pool: None without one.
    """

    def __init__(self, connect: Callable[[], Any], pool: PoolFactory | None) -> None:
        self.connect_directly = connect
        self.pool = None if pool is None else pool(connect)
        # Reentrant: the garbage collector may close a store in the midst of recreate().
        self._lock = threading.RLock()

    def connect(self) -> Any:
        return self.connect_directly() if self.pool is None else self.pool.connect()

    def renew(self, pool: Pool) -> None:
        """Forget the pool's other connections: the server that dropped one dropped them all."""
        with self._lock:
            if self.pool is not pool:
                return  # another attempt did it already
            self.pool = pool.recreate()
        pool.dispose()
