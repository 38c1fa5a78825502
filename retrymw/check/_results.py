"""What a check has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from retrymw._core.policy import Mark, RetryPolicy

__all__ = ["Checked", "Code", "Finding", "Middleware", "Route"]

Code = Literal[
    "no-middleware",
    "nested",
    "no-integration",
    "unmarked",
    "mark-without-effect",
    "squashed",
    "late-commit",
    "base-http-middleware",
]
"""What a finding is about."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will surprise.

    Attributes:
        code: what it is about; the page "Check your app" explains each.
        place: the route, function or framework that it is about.
        surprise: what will happen.
        fix: what to do about it.
    """

    code: Code
    place: str
    surprise: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place}: {self.code}: {self.surprise}.\n    {self.fix}."


@dataclass(frozen=True, slots=True)
class Middleware:
    """A ``RetryMiddleware`` that was found.

    Attributes:
        shell: ``"asgi"`` or ``"wsgi"``.
        prefix: the path of the app that it is around.
        policy: its rules.
        databases: the classes of its databases.
    """

    shell: Literal["asgi", "wsgi"]
    prefix: str
    policy: RetryPolicy
    databases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A route, or those methods of it that are treated alike.

    Attributes:
        methods: HTTP methods, or ``WEBSOCKET``. Of an endpoint that takes any, the usual ones.
        path: as the framework writes it, with the prefixes of what it is mounted in.
        endpoint: the module and name of the function or class; of a lambda or the like, its repr.
        mark: the mark that the middleware sees, None without one.
        before_commit: whether a failure before any commit is replayed.
        after_commit: whether one after a commit was seen is.
        commit_unknown: whether one is whose COMMIT was sent, its answer lost.
        why: the reason, in words.
    """

    methods: tuple[str, ...]
    path: str
    endpoint: str
    mark: Mark | None
    before_commit: bool
    after_commit: bool
    commit_unknown: bool
    why: str

    def __str__(self) -> str:
        return f"{', '.join(self.methods)} {self.path}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What :func:`check` found.

    Attributes:
        frameworks: whose routes were seen, outermost first.
        middleware: each ``RetryMiddleware``, outermost first.
        routes: in the order of the app.
        findings: what will surprise; empty if all is well.
        unseen: parts of the app whose routes can't be seen.
    """

    frameworks: tuple[str, ...] = ()
    middleware: tuple[Middleware, ...] = ()
    routes: tuple[Route, ...] = ()
    findings: tuple[Finding, ...] = ()
    unseen: tuple[str, ...] = ()
