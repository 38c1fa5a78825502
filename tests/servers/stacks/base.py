"""What every driver and layer of the matrix has in common.

A stack is a driver, alone or under layers: "asyncpg", "SQLAlchemy + asyncpg". It is used as an app
would use it, through the same few operations, and raises what it raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from anyio.from_thread import BlockingPortal

from retrymw.exceptions import Kind, Phase


@dataclass(frozen=True)
class Where:
    """Where a server is, and how long to wait for it. All times in seconds."""

    host: str
    port: int
    user: str = "app"
    password: str = "app"
    database: str = "app"
    socket: str | None = None  # MariaDB: of the Unix socket; PostgreSQL: of its folder. Wins
    connect_timeout: int = 10  # as far as the driver has one
    read_timeout: int | None = None  # None: the driver's default


class Session(ABC):
    """One connection, in the hands of one request. Transactions begin by themselves."""

    @abstractmethod
    def execute(self, sql: str) -> list[Any]:
        """Run a statement as an app would; return the rows, if there are any."""

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Close the connection for good, as whoever throws a broken one away has to."""

    def commit_or_roll_back(self) -> None:
        """What many apps do about a commit that fails."""
        try:
            self.commit()
        except Exception:
            self.rollback()
            raise


class DBAPISession(Session):
    """A connection of a DB-API driver."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, sql: str) -> list[Any]:
        cursor = self.connection.cursor()
        cursor.execute(sql)
        rows = list(cursor.fetchall()) if cursor.description else []
        cursor.close()
        return rows

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def close(self) -> None:
        self.connection.close()


class Pool(ABC):
    """A pool of at most one connection, which waits for it as short as it can be told to."""

    @abstractmethod
    def acquire(self) -> Any:
        """Take a connection out."""

    @abstractmethod
    def close(self) -> None:
        """Close the pool as an app does when it ends. May be called twice."""


class Stack(ABC):
    """A driver, alone or under layers.

    Attributes:
        name: as on the page: "PyMySQL", "SQLAlchemy + PyMySQL".
        server: what it talks to.
        undecidable: situation -> what classify says of it for this stack, though it differs from
            what it would have to be, and the reason: a sentence for the page.
        differs: situation -> what it rightly is for this stack, and the reason: a sentence.
        impossible: situation -> the reason why it can't happen to this stack: a sentence too.
    """

    name: str
    server: Literal["mariadb", "postgresql", "sqlite", "pgbouncer"]
    undecidable: Mapping[str, tuple[tuple[Kind, Phase] | None, str]] = {}
    differs: Mapping[str, tuple[tuple[Kind, Phase] | None, str]] = {}
    impossible: Mapping[str, str] = {}

    @abstractmethod
    def connect(self, where: Where, *, autocommit: bool = False) -> Session: ...

    def pool(self, where: Where) -> Pool:
        """Its own pool; NotImplementedError where there is none."""
        raise NotImplementedError

    def collide(self, session: Session) -> None:
        """Use one connection from two tasks at once, and raise what that raises.

        NotImplementedError where that can't be done, or is no error.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        return self.name


class AsyncSession(ABC):
    """As `Session`, for an async stack: its methods run in the event loop."""

    @abstractmethod
    async def execute(self, sql: str) -> list[Any]: ...

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def rollback(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    async def commit_or_roll_back(self) -> None:
        try:
            await self.commit()
        except Exception:
            await self.rollback()
            raise


class AsyncPool(ABC):
    """As `Pool`, for an async stack."""

    @abstractmethod
    async def acquire(self) -> Any: ...

    @abstractmethod
    async def close(self) -> None: ...


class AsyncStack(Stack):
    """A stack that is used in an event loop, which goes on running in a thread of its own."""

    portal: ClassVar[BlockingPortal]  # the loop; the matrix sets it

    @abstractmethod
    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession: ...

    async def open_pool(self, where: Where) -> AsyncPool:
        """`pool`; NotImplementedError where there is none."""
        raise NotImplementedError

    async def open_collision(self, session: AsyncSession) -> None:
        """`collide`, with a session of `open`."""
        raise NotImplementedError

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        async def opened() -> AsyncSession:
            return await self.open(where, autocommit=autocommit)

        return _BlockingSession(self.portal, self.portal.call(opened))

    def pool(self, where: Where) -> Pool:
        return _BlockingPool(self.portal, self.portal.call(self.open_pool, where))

    def collide(self, session: Session) -> None:
        assert isinstance(session, _BlockingSession)
        self.portal.call(self.open_collision, session.wrapped)


class _BlockingSession(Session):
    def __init__(self, portal: BlockingPortal, wrapped: AsyncSession) -> None:
        self.wrapped = wrapped
        self._call: Callable[..., Any] = portal.call

    def execute(self, sql: str) -> list[Any]:
        return self._call(self.wrapped.execute, sql)

    def commit(self) -> None:
        self._call(self.wrapped.commit)

    def rollback(self) -> None:
        self._call(self.wrapped.rollback)

    def commit_or_roll_back(self) -> None:
        self._call(self.wrapped.commit_or_roll_back)

    def close(self) -> None:
        self._call(self.wrapped.close)


class _BlockingPool(Pool):
    def __init__(self, portal: BlockingPortal, wrapped: AsyncPool) -> None:
        self._wrapped = wrapped
        self._call: Callable[[Callable[[], Awaitable[Any]]], Any] = portal.call

    def acquire(self) -> Any:
        return self._call(self._wrapped.acquire)

    def close(self) -> None:
        self._call(self._wrapped.close)
