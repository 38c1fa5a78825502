"""Connection-level retry, for scripts and start-up: wait until the database lets us in.

A web request must fail fast, and is replayed by the middleware. A script, a migration, a worker or
a service that is starting has nobody to replay it: it waits, with back-off.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, get_args, overload

import tenacity
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from retrymw._context import is_inside, running
from retrymw._core.failure import Failure
from retrymw._core.policy import check_strategy, is_async
from retrymw._half_opened import is_pool, open_pool
from retrymw.classify import classify, translate

__all__ = ["ConnectPolicy", "ConnectWait", "Mode", "connecting"]

Connect = TypeVar("Connect", bound=Callable[..., Any])

Mode = Literal["block", "fail-fast"]

_logger: Final = logging.getLogger("retrymw")


@dataclass(frozen=True, kw_only=True)
class ConnectPolicy:
    """How long to wait for a connection. Frozen; a wrong value raises here, at start-up.

    Args:
        wait: a tenacity wait strategy: the seconds before the next attempt. The default is full
            jitter: at random up to 0.05 s, then up to 0.1, 0.2 …, at most 5.
        stop: a tenacity stop strategy. The default gives up after 60 s. The last wait is cut short,
            so that there is one more attempt when the time is up.

    Raises:
        TypeError: naming the field, its value and what is allowed.
    """

    wait: wait_base | Callable[[tenacity.RetryCallState], float | int] = field(
        default=tenacity.wait_random_exponential(multiplier=0.05, max=5)
    )
    stop: stop_base | Callable[[tenacity.RetryCallState], bool] = field(
        default=tenacity.stop_after_delay(60)
    )

    def __post_init__(self) -> None:
        check_strategy("ConnectPolicy.wait", self.wait, "wait strategy, such as wait_fixed(0.1)")
        check_strategy("ConnectPolicy.stop", self.stop, "stop strategy: stop_after_delay(60)")


@dataclass(frozen=True)
class ConnectWait:
    """What is told before each wait.

    Attributes:
        attempt: how many there were so far.
        failure: why the last one failed.
        seconds: until the next one.
        elapsed: seconds since the first one began.
        left: seconds until there is no further one; None if the stop strategy does not tell.
    """

    attempt: int
    failure: Failure
    seconds: float
    elapsed: float
    left: float | None


@overload
def connecting(
    connect: Connect,
    *,
    mode: Mode = ...,
    policy: ConnectPolicy | None = ...,
    on_wait: Callable[[ConnectWait], object] | None = ...,
) -> Connect: ...
@overload
def connecting(
    connect: None = ...,
    *,
    mode: Mode = ...,
    policy: ConnectPolicy | None = ...,
    on_wait: Callable[[ConnectWait], object] | None = ...,
) -> Callable[[Connect], Connect]: ...
def connecting(
    connect: Callable[..., Any] | None = None,
    *,
    mode: Mode = "block",
    policy: ConnectPolicy | None = None,
    on_wait: Callable[[ConnectWait], object] | None = None,
) -> Any:
    """Make ``connect`` wait for the database: ``connecting(pymysql.connect)(host=…)``.

    It wraps whatever opens a connection or a pool, be it a function, a coroutine function, or one
    that returns something to await; it is also a decorator, with arguments or without. What it
    returns is the driver's own, unchanged.

    With ``mode="block"`` a failure in phase ``connect`` is waited out: too many connections,
    refused, starting up, cut in the handshake. All else is raised at once: a wrong password, an
    unknown database, a mistake in the program. When the policy says stop, the last exception is
    raised, the original object (G7). Each wait is logged as a warning.

    Within a request that the middleware handles it does not wait: the exception is raised, since
    the request is replayed, and retries within replays multiply. A warning in the log says so once.

    With ``mode="fail-fast"`` such a failure is raised at once as a ``DisconnectionError`` or
    ``TooManyConnections``, from the original.

    Cancellation and ``KeyboardInterrupt`` end a wait at once (G6). How long one attempt may take is
    the driver's business: set its ``connect_timeout``.

    Args:
        connect: opens a connection or a pool.
        mode: ``"block"`` or ``"fail-fast"``.
        policy: how to wait, and for how long; None for ``ConnectPolicy()``.
        on_wait: is called before each wait, with a :class:`ConnectWait`; an error in it is logged.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    if mode not in get_args(Mode):
        allowed = " or ".join(map(repr, get_args(Mode)))
        raise ValueError(f"connecting() was given mode={mode!r}; allowed: {allowed}")
    if policy is not None and not isinstance(policy, ConnectPolicy):
        raise TypeError(f"connecting() was given policy={policy!r}; allowed: a ConnectPolicy")
    if on_wait is not None and (not callable(on_wait) or is_async(on_wait)):
        raise TypeError(
            f"connecting() was given on_wait={on_wait!r}; allowed: a function of a ConnectWait"
        )
    if connect is None:
        return functools.partial(connecting, mode=mode, policy=policy, on_wait=on_wait)
    if not callable(connect):
        raise TypeError(
            f"connecting() was given connect={connect!r}; allowed: a function that connects, such "
            "as pymysql.connect"
        )
    written = inspect.unwrap(connect)
    if inspect.isgeneratorfunction(written) or inspect.isasyncgenfunction(written):
        raise TypeError(
            f"connecting() was given connect={connect!r}, which opens nothing until it is entered; "
            "allowed: a function that connects, such as pymysql.connect or engine.connect"
        )
    door = _Door(connect, mode, policy or ConnectPolicy(), on_wait)
    once = functools.partial(open_pool, connect) if is_pool(connect) else connect
    if is_async(connect):

        @functools.wraps(connect)
        async def connect_async(*args: Any, **kwargs: Any) -> Any:
            return await door.wait_for(lambda: once(*args, **kwargs))

        return connect_async

    @functools.wraps(connect)
    def connect_sync(*args: Any, **kwargs: Any) -> Any:
        return door.enter(lambda: once(*args, **kwargs))

    return connect_sync


class _Door:
    """What is behind a function that connects: how it is tried again."""

    def __init__(
        self,
        connect: Callable[..., Any],
        mode: Mode,
        policy: ConnectPolicy,
        on_wait: Callable[[ConnectWait], object] | None,
    ) -> None:
        named: Any = connect.func if isinstance(connect, functools.partial) else connect
        if not hasattr(named, "__qualname__"):  # not its repr: there may be a password in it
            named = type(named)
        self._name = f"{str(named.__module__).partition('.')[0]}.{named.__qualname__}"
        self._blocks = mode == "block"
        self._policy = policy
        self._on_wait = on_wait
        self._longest = _longest(policy.stop)
        self._warned = False

    def enter(self, connect: Callable[[], Any]) -> Any:
        """Connect; of what has to be awaited, a promise to."""
        if not self._blocks:
            with translate():
                handle = connect()
        else:
            handle = tenacity.Retrying(**self._rules())(connect)
        # aiomysql.connect and the like are plain functions.
        return _Opening(self, connect, handle) if inspect.isawaitable(handle) else handle

    async def wait_for(self, connect: Callable[[], Awaitable[Any]]) -> Any:
        """Connect, and await it."""
        if not self._blocks:
            with translate():
                return await connect()

        async def attempt() -> Any:  # tenacity is told by its kind that there is something to await
            return await connect()

        return await tenacity.AsyncRetrying(**self._rules())(attempt)

    def _rules(self) -> dict[str, Any]:
        return {
            "retry": tenacity.retry_if_exception(lambda exc: _failure(exc) is not None),
            "wait": self._wait,
            "stop": self._stop,
            "before_sleep": self._tell,
            "reraise": True,
        }

    def _wait(self, state: tenacity.RetryCallState) -> float:
        seconds = max(0.0, float(self._policy.wait(state)))
        if self._longest is None:
            return seconds
        return min(seconds, max(0.0, self._longest - (state.seconds_since_start or 0.0)))

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        run = running.get()
        if run is None or not is_inside(run):
            return bool(self._policy.stop(state))
        if not self._warned:
            self._warned = True
            _logger.warning(
                "connecting(%s) does not wait within a request: the middleware replays it. Use "
                'mode="fail-fast" there',
                self._name,
            )
        return True

    def _tell(self, state: tenacity.RetryCallState) -> None:
        failure = _failure(_exception(state))
        if failure is None:  # can't be: it is why we are here
            return
        elapsed = state.seconds_since_start or 0.0
        left = None if self._longest is None else max(0.0, self._longest - elapsed)
        seconds = state.upcoming_sleep
        told = ConnectWait(state.attempt_number, failure, seconds, elapsed, left)
        _logger.warning(
            "%s: attempt %d: %s: %r; next in %.2f s%s",
            self._name,
            told.attempt,
            failure.kind,
            failure.exception,
            seconds,
            "" if left is None else f", {left:.0f} s left",
            extra={"retrymw": told},
        )
        if self._on_wait is not None:
            try:
                self._on_wait(told)
            except Exception:  # it observes, and must not hide the failure (G7)
                _logger.exception("on_wait %r raised", self._on_wait)


class _Opening:
    """What a driver's function returns to be awaited, or used in ``async with``: the same, patient.

    Args:
        door: how it is tried again.
        connect: makes another one.
        first: the one that was made already.
    """

    def __init__(self, door: _Door, connect: Callable[[], Any], first: Any) -> None:
        self._door = door
        self._connect = connect
        self._first = first
        self._entered: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._door.wait_for(self._next).__await__()

    async def __aenter__(self) -> Any:
        return await self._door.wait_for(self._enter)

    async def __aexit__(self, *exc_info: object) -> Any:
        return await self._entered.__aexit__(*exc_info)

    def _next(self) -> Any:
        first, self._first = self._first, None
        return self._connect() if first is None else first

    async def _enter(self) -> Any:
        # What the driver returned knows how it is to be left: a pool's connection goes back to it.
        opening = self._next()
        self._entered = opening if hasattr(opening, "__aenter__") else await opening
        return await self._entered.__aenter__()


def _failure(exc: BaseException | None) -> Failure | None:
    """The failure, if waiting can cure it."""
    failure = classify(exc) if exc is not None else None
    return failure if failure is not None and failure.phase == "connect" else None


def _exception(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _longest(stop: object) -> float | None:
    """After how many seconds a strategy stops, if it tells."""
    if isinstance(stop, (tenacity.stop_after_delay, tenacity.stop_before_delay)):
        return float(stop.max_delay)
    if isinstance(stop, tenacity.stop_any):
        told = [seconds for part in stop.stops if (seconds := _longest(part)) is not None]
        return min(told, default=None)
    return None
