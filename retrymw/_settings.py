"""What both shells are given, checked at start-up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from retrymw._core.policy import RetryPolicy, is_async
from retrymw._waiting import WaitingRooms
from retrymw.typing import Hook

__all__ = ["Settings"]

_DATABASE_METHODS = ("rollback", "release", "ping")


class Settings:
    """The policy, databases and hooks of one middleware, and its waiting rooms.

    ``units`` are those of the databases that are to be committed before a response is released.

    Args:
        policy: None for the default one.
        databases: what the shell rolls back, releases and pings.
        hooks: what the shell reports to.
        find_endpoint: finds the endpoint of a routed scope or environ.
        max_waiting: the shell's default, used where the policy says None.
        loop: what stands for the event loop that the shell is called in, if there is one.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
    """

    __slots__ = (
        "always_told",
        "databases",
        "find_endpoint",
        "holds_all",
        "hooks",
        "plain",
        "policy",
        "rooms",
        "units",
    )

    def __init__(
        self,
        policy: RetryPolicy | None,
        databases: Iterable[Any],
        hooks: Iterable[Hook],
        *,
        find_endpoint: Callable[[Any], object],
        max_waiting: Callable[[Any], int],
        loop: Callable[[], object] = lambda: None,
    ) -> None:
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise TypeError(
                f"policy is {policy!r}; allowed: a RetryPolicy, or None for the default"
            )
        self.policy = policy = RetryPolicy() if policy is None else policy
        self.holds_all = policy.hold == "until-return"
        self.always_told = policy.expose == "always"
        self.plain = not self.holds_all and not self.always_told
        self.databases = _items("databases", databases)
        for database in self.databases:
            if isinstance(database, type) or not all(
                callable(getattr(database, name, None)) for name in _DATABASE_METHODS
            ):
                raise TypeError(
                    f"databases has {database!r}; allowed: adapters, such as "
                    "retrymw.adapters.pymysql.Database, with rollback, release and ping"
                )
        self.units = tuple(
            database
            for database in self.databases
            if getattr(database, "commits_on_success", False)
        )
        for unit in self.units:
            if not callable(getattr(unit, "commit", None)):
                raise TypeError(
                    f"databases has {unit!r}, whose commits_on_success is true; allowed: adapters "
                    "that have commit(attempt) then"
                )
        self.hooks = _items("hooks", hooks)
        for hook in self.hooks:
            if not callable(hook) or is_async(hook):
                raise TypeError(
                    f"hooks has {hook!r}; allowed: functions of a report (no coroutine functions)"
                )
        self.find_endpoint = find_endpoint
        self.rooms = WaitingRooms(policy, max_waiting, loop)


def _items(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; allowed: a list, such as [{value!r}]") from None
