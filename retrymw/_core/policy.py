"""The rules of an exchange: what a user configures, and what a mark overrides."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args

from tenacity import RetryCallState, wait_exponential_jitter

from retrymw._core.failure import KINDS, Failure, Kind

if TYPE_CHECKING:
    from tenacity.wait import wait_base

__all__ = [
    "OVERRIDABLE",
    "SAFE_METHODS",
    "Expose",
    "Hold",
    "Mark",
    "MarkKind",
    "RetryPolicy",
    "check_strategy",
    "is_async",
]

# RFC 9110 §9.2.1, and QUERY, which its own specification defines as safe.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})

Hold = Literal["first-chunk", "until-return"]
Expose = Literal["replayed", "always", "never"]

_DEFAULT_WAIT = wait_exponential_jitter(multiplier=0.05, exp_base=3, max=4, jitter=0.05)

# What a mark may change: it is found when the request is routed, and the rest is settled by then.
OVERRIDABLE = frozenset({"max_replays", "wait", "deadline", "kinds"})

# A token (RFC 9110 §5.6.2) in capitals.
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The rules of an exchange. Frozen; a wrong value raises here, at start-up.

    Args:
        max_replays: replays after the first attempt: ``1 + max_replays`` runs at most.
        wait: a tenacity wait strategy: the seconds a request that waits alone waits before its next
            replay; the waiting room may call it earlier, and among others later. The default waits
            0.05, 0.15, 0.45, 1.35 and 4 s (and up to 0.05 s more), six in all.
        deadline: seconds from the request's arrival after which no attempt starts.
        kinds: the kinds of failure that are handled; the others pass as if retrymw were not there.
        methods: methods that are replayed without a mark. Safe ones (RFC 9110 §9.2.1) are replayed
            whatever was committed, the others only before any commit.
        body_memory: bytes of a request body kept in memory before the recording spills to disk, and
            bytes of a held response kept before it is released.
        body_limit: bytes of a request body after which the recording is dropped and the request is
            not replayed any more.
        max_waiting: requests of one middleware that may wait at once, for a replay or for their
            turn; one more is refused (``overload``). ``None``: 1000 under ASGI and gevent; under
            threads half of them where the server tells how many there are, else 4.
        hold: ``"first-chunk"`` holds a response until its first body bytes; ``"until-return"``
            until the app returns, for apps that commit after the response.
        expose: when the ``Retry-…`` headers tell what happened: ``"replayed"`` (only when something
            did), ``"always"``, ``"never"``.

    Raises:
        TypeError, ValueError: naming the field, its value and what is allowed.
    """

    max_replays: int = 5
    wait: wait_base | Callable[[RetryCallState], float | int] = field(default=_DEFAULT_WAIT)
    deadline: float = 10.0
    kinds: Collection[Kind] = KINDS
    methods: Collection[str] = SAFE_METHODS | {"PUT", "DELETE"}
    body_memory: int = 1 << 20
    body_limit: int = 64 << 20
    max_waiting: int | None = None
    hold: Hold = "first-chunk"
    expose: Expose = "replayed"

    def __post_init__(self) -> None:
        _whole("max_replays", self.max_replays, at_least=0)
        check_strategy("RetryPolicy.wait", self.wait, "wait strategy, such as wait_fixed(0.1)")
        if isinstance(self.deadline, bool) or not isinstance(self.deadline, (int, float)):
            raise TypeError(
                f"RetryPolicy.deadline is {self.deadline!r}; allowed: seconds, a number"
            )
        if not 0 < self.deadline < math.inf:
            raise ValueError(
                f"RetryPolicy.deadline is {self.deadline!r}; allowed: seconds, finite, above 0"
            )
        kinds = _words("kinds", self.kinds)
        if not kinds <= KINDS:
            raise ValueError(
                f"RetryPolicy.kinds is {self.kinds!r}; allowed: any of {', '.join(sorted(KINDS))}"
            )
        methods = _words("methods", self.methods)
        if not all(_METHOD.fullmatch(method) for method in methods):
            raise ValueError(
                f"RetryPolicy.methods is {self.methods!r}; allowed: HTTP methods in capitals, "
                "such as {'GET', 'PUT'}"
            )
        _whole("body_memory", self.body_memory, at_least=0)
        _whole("body_limit", self.body_limit, at_least=0)
        if self.body_limit < self.body_memory:
            raise ValueError(
                f"RetryPolicy.body_limit is {self.body_limit!r}; allowed: at least body_memory, "
                f"which is {self.body_memory!r} bytes"
            )
        if self.max_waiting is not None:
            _whole("max_waiting", self.max_waiting, at_least=0)
        _choice("hold", self.hold, get_args(Hold))
        _choice("expose", self.expose, get_args(Expose))
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "methods", methods)

    def wait_before(self, replay: int, failure: Failure) -> float:
        """The seconds to wait before the given replay (1 for the first), as ``wait`` has it."""
        try:
            seconds = float(self.wait(_state(replay, failure.exception)))
        except Exception as error:
            # The failure is what must be told of; for a strategy that breaks down ours steps in.
            note = f"RetryPolicy.wait raised {error!r} before replay {replay}"
            getattr(failure.exception, "add_note", lambda _: None)(note)  # new in Python 3.11
            seconds = _DEFAULT_WAIT(_state(replay, failure.exception))
        return seconds if seconds > 0 else 0.0  # a strategy's NaN becomes 0 as well

    def overridden(self, mark: Mark | None) -> RetryPolicy:
        """This policy with what the mark changes of it."""
        return replace(self, **mark.overrides) if mark is not None and mark.overrides else self


class MarkKind(Enum):
    """What a decorator says of an endpoint."""

    IDEMPOTENT = "idempotent"
    ROLLBACK_SAFE = "rollback_safe"
    NEVER_REPLAY = "never_replay"


@dataclass(frozen=True)
class Mark:
    """What a decorator says of an endpoint, and what it changes of the policy."""

    kind: MarkKind
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.overrides.keys() - OVERRIDABLE:
            raise TypeError(
                f"@{self.kind.value} was given {name}={self.overrides[name]!r}; allowed: "
                f"{', '.join(sorted(OVERRIDABLE))}"
            )
        RetryPolicy(**self.overrides)


def _state(replay: int, exc: BaseException) -> RetryCallState:
    """What a strategy reads: the number and the outcome."""
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # no strategy asks for it
    state.attempt_number = replay
    state.set_exception((type(exc), exc, exc.__traceback__))
    return state


def is_async(function: object) -> bool:
    """Whether calling it gives something to await; also for callable objects."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # the method itself is looked at
    )


def check_strategy(name: str, strategy: Any, allowed: str) -> None:
    """Refuse what is callable but no strategy: it would be found out in the first outage."""
    problem: str | None = None
    if not callable(strategy):
        problem = "it can't be called"
    elif inspect.isclass(strategy):
        problem = "it is a class, not an object of it"
    elif is_async(strategy):
        problem = "it is async"
    else:
        try:
            inspect.signature(strategy).bind(None)
        except TypeError as error:
            problem = f"called with one argument it raises {error!r}"
        except ValueError:
            pass  # something built in, which has no signature
    if problem is not None:
        raise TypeError(f"{name} is {strategy!r}, but {problem}; allowed: a tenacity {allowed}")


def _whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"RetryPolicy.{name} is {value!r}; allowed: a whole number, at least {at_least}"
        )
    if value < at_least:
        raise ValueError(
            f"RetryPolicy.{name} is {value!r}; allowed: a whole number, at least {at_least}"
        )


def _words(name: str, value: object) -> frozenset[Any]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"RetryPolicy.{name} is {value!r}; allowed: a set of strings")
    if not all(isinstance(word, str) for word in value):
        raise TypeError(f"RetryPolicy.{name} is {value!r}; allowed: a set of strings")
    return frozenset(value)


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"RetryPolicy.{name} is {value!r}; allowed: {' or '.join(map(repr, allowed))}"
        )
