"""What ``retrymw doctor`` makes of what it read: pure, the server is not asked here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["Demand", "Finding", "Limit", "Report", "Timeout", "judge"]

Severity = Literal["ok", "notice", "warning"]

_NEARLY: Final = 0.8  # of a limit in use: from here on it is worth a warning


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        severity: a warning will go wrong, or has; a notice is worth knowing.
        what: in one sentence.
        why: what it follows from.
        set: what to set, or to do; empty if nothing.
    """

    severity: Severity
    what: str
    why: str = ""
    set: str = ""


@dataclass(frozen=True)
class Limit:
    """There are only so many connections.

    Attributes:
        name: the server's name for it.
        most: how many this account can have of it, were nobody else there.
        others: how many others have.
        ours: how many this account has, without doctor's own.
        reserved: how many more there are, which this account can't have.
        how_to_raise: with ``{}`` for the number.
    """

    name: str
    most: int
    others: int
    ours: int
    how_to_raise: str
    reserved: int = 0

    @property
    def free(self) -> int:
        """How many there are for all that the app runs."""
        return max(0, self.most - self.others)

    @property
    def why(self) -> str:
        """How that comes about."""
        parts = [f"{self.name} is {self.most + self.reserved}"]
        if self.reserved:
            parts.append(f"{self.reserved} of these are reserved")
        if self.others:
            parts.append(f"others use {self.others}")
        if self.ours:
            parts.append(f"the {self.ours} of this account are taken for the app's")
        return ", ".join(parts)

    def raised_to(self, connections: int) -> str:
        """What to set, so that there are as many for the app."""
        return self.how_to_raise.format(connections + self.others + self.reserved)


@dataclass(frozen=True)
class Timeout:
    """After how many seconds the server ends an idle connection, and what the app then meets."""

    name: str
    seconds: float
    code: str


@dataclass(frozen=True)
class Report:
    """What was read.

    Attributes:
        server: what it is, and its version.
        account: who we are there.
        facts: settings and counters by the server's names for them.
        holders: how many connections each account has, as far as could be seen.
        limits: of the server, the account, the database.
        timeout: of idle connections, if there is one.
        findings: what does not depend on the app.
        pooler: whether a pooler is between us and the server.
        connects_per_hour: how often the account may connect; None for as often as it likes.
    """

    server: str
    account: str
    facts: Mapping[str, int | str]
    holders: Mapping[str, int]
    limits: tuple[Limit, ...]
    timeout: Timeout | None = None
    findings: tuple[Finding, ...] = ()
    pooler: bool = False
    connects_per_hour: int | None = None


@dataclass(frozen=True)
class Demand:
    """What the app asks for.

    Attributes:
        workers: processes; None if not told.
        pool_size, overflow: connections of the pool of each.
        threads: requests that each runs at once; None if not told.
        recycle: seconds after which the pool renews a connection; -1 for never, None if not told.
    """

    workers: int | None = None
    pool_size: int = 5
    overflow: int = 10
    threads: int | None = None
    recycle: int | None = None
    needed: int = field(init=False)

    def __post_init__(self) -> None:
        needed = (self.workers or 0) * (self.pool_size + self.overflow)
        object.__setattr__(self, "needed", needed)

    @property
    def sum(self) -> str:
        """The calculation."""
        return f"{self.workers} * ({self.pool_size} + {self.overflow}) = {self.needed}"


def judge(report: Report, demand: Demand) -> list[Finding]:
    """All there is to say, the worst first."""
    findings = [*_connections(report, demand), *_recycle(report, demand), *report.findings]
    findings += [*_in_use(report), *_threads(demand), *_per_hour(report, demand)]
    order: list[Severity] = ["warning", "notice", "ok"]
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _connections(report: Report, demand: Demand) -> Iterator[Finding]:
    """Whether there are enough for all workers."""
    if report.pooler:
        return  # the app's connections end there
    tightest = min(report.limits, key=lambda limit: limit.free)
    if demand.workers is None:
        yield Finding(
            "ok" if tightest.free else "warning",
            f"The app can have {_connections_of(tightest.free)}.",
            f"{tightest.why}. With --workers, --pool-size and --overflow told, doctor says whether "
            "that is enough.",
        )
        return
    short = [limit for limit in report.limits if limit.free < demand.needed]
    for limit in short:
        each = limit.free // demand.workers
        less = f"pool_size + max_overflow at most {each} in each of the {demand.workers} workers"
        if not each:
            less = f"fewer workers: there is not one connection for each of {demand.workers}"
        yield Finding(
            "warning",
            f"{limit.name} will run dry: the workers may open {demand.needed} connections, and "
            f"there are {limit.free} for them.",
            f"{demand.sum}; {limit.why}.",
            f"{less}; or {limit.raised_to(demand.needed)}",
        )
    if short:
        return
    yield Finding(
        "ok",
        f"There are enough connections: the workers may open {demand.needed}, and there are "
        f"{tightest.free} for them.",
        f"{demand.sum}; {tightest.why}.",
    )
    if tightest.free < 2 * demand.needed:
        yield Finding(
            "notice",
            "A deployment that starts the new workers before the old ones have ended will run dry.",
            f"Both together may open {2 * demand.needed} connections; {tightest.why}.",
            tightest.raised_to(2 * demand.needed),
        )


def _in_use(report: Report) -> Iterator[Finding]:
    """Whether there are few left right now."""
    for limit in report.limits:
        used = limit.others + limit.ours
        if used >= _NEARLY * limit.most:
            yield Finding(
                "warning",
                f"{limit.name} is nearly used up: {used} of {limit.most} connections.",
                f"This account has {limit.ours}, others have {limit.others}.",
                "Find out who holds them, and whether they are idle; smaller pools, or "
                + limit.raised_to(2 * limit.most - limit.others),
            )


def _recycle(report: Report, demand: Demand) -> Iterator[Finding]:
    """Whether the pool renews its connections before the server ends them."""
    timeout = report.timeout
    if timeout is None:
        return
    name, seconds = timeout.name, f"{timeout.seconds:g} s"
    below = f"pool_recycle={max(1, int(timeout.seconds * 3 / 4))}, or pool_pre_ping=True"
    if demand.recycle is None:
        yield Finding(
            "notice",
            f"The server ends connections that are idle for {seconds} ({name}).",
            "A pool has to renew them before, or hands out dead ones.",
            f"{below}; say --recycle to have it compared",
        )
    elif 0 <= demand.recycle < timeout.seconds:
        yield Finding("ok", f"The pool renews connections before the server ends them ({name}).")
    else:
        recycle = "never" if demand.recycle < 0 else f"only after {demand.recycle} s"
        yield Finding(
            "warning",
            f"The pool will hand out dead connections: it renews them {recycle}, and the server "
            f"ends those idle for {seconds} ({name}).",
            f"The app then meets {timeout.code}: retrymw explain {timeout.code}",
            below,
        )


def _threads(demand: Demand) -> Iterator[Finding]:
    """Whether the pool has a connection for each request at once."""
    most = demand.pool_size + demand.overflow
    if demand.threads is not None and demand.threads > most:
        yield Finding(
            "warning",
            f"The pool will run dry: {demand.threads} requests at once in each worker share "
            f"{_connections_of(most)}.",
            "The others wait for pool_timeout, and then fail as too-many-connections.",
            f"pool_size + max_overflow at least {demand.threads}, or fewer threads",
        )


def _per_hour(report: Report, demand: Demand) -> Iterator[Finding]:
    """Whether the account may connect as often as pools and retries do."""
    most = report.connects_per_hour
    if most is None:
        return
    renewals = 3600 / demand.recycle if demand.recycle is not None and demand.recycle > 0 else 1
    rate = round(demand.needed * max(1.0, renewals))
    yield Finding(
        "warning" if rate > most else "notice",
        f"The account may connect {most} times per hour (MAX_CONNECTIONS_PER_HOUR).",
        f"Pools that fill and renew themselves connect {rate} times per hour, and each retry "
        "counts as well."
        if rate
        else "Each connection of a pool, and each retry, counts.",
        f"ALTER USER {report.account} WITH MAX_CONNECTIONS_PER_HOUR 0",
    )


def _connections_of(number: int) -> str:
    return f"{number} connection{'s' * (number != 1)}"
