"""Through an app, from the outside in: middleware, frameworks, what is mounted in them."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from retrymw._settings import Settings
from retrymw.check._code import closed_over
from retrymw.check._results import Finding

__all__ = [
    "MOST_LAYERS",
    "Endpoint",
    "Found",
    "Mounted",
    "Place",
    "Unseen",
    "always",
    "inner",
    "is_retry_class",
    "name_of",
    "walk",
]

MOST_LAYERS: Final = 64
_SHELLS: Final = frozenset({"retrymw.asgi", "retrymw.wsgi"})

# By the package that the app's class, or one of its bases, is defined in.
_MODULES: Final = {
    "bottle": "_bottle",
    "django": "_django",
    "falcon": "_falcon",
    "fastapi": "_fastapi",
    "flask": "_flask",
    "litestar": "_litestar",
    "pyramid": "_pyramid",
    "quart": "_flask",
    "starlette": "_starlette",
}

# Where middleware keeps the app that it is around, and where Flask, Quart and Bottle keep what they
# call, which is what they are wrapped at.
_INNER: Final = ("app", "wsgi_app", "asgi_app", "wsgi", "application", "wsgi_application")


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are: the path so far, and the middleware around it, outermost first.

    Each layer is the prefix that it is at, and the middleware, or what it is to be made of.
    """

    prefix: str = ""
    layers: tuple[tuple[str, Any], ...] = ()

    def below(self, path: str) -> Place:
        """What is mounted at a path."""
        return replace(self, prefix=self.prefix.rstrip("/") + path.rstrip("/"))

    def within(self, *layers: object) -> Place:
        """What is inside of more middleware."""
        return replace(self, layers=(*self.layers, *((self.prefix, layer) for layer in layers)))

    @property
    def retries(self) -> list[tuple[str, Any]]:
        """Each ``RetryMiddleware`` around it, with its prefix."""
        return [(prefix, layer) for prefix, layer in self.layers if is_retry_class(type(layer))]

    @property
    def settings(self) -> Settings | None:
        """Of the outermost ``RetryMiddleware``, which is the one that acts."""
        return self.retries[0][1]._settings if self.retries else None

    @property
    def inside(self) -> list[Any]:
        """The middleware that runs again with each replay."""
        layers = [layer for _, layer in self.layers]
        return layers[layers.index(self.retries[0][1]) + 1 :] if self.retries else []

    def path(self, path: str) -> str:
        """The whole path of a route."""
        return self.prefix.rstrip("/") + "/" + path.lstrip("/")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route.

    Attributes:
        place: where it is.
        path: the whole path.
        methods: None for any.
        target: what the mark is read off, given a method; as the middleware or integration does.
        framework: its name.
        missing: the integration that the framework needs and does not have.
        hides: whether without that integration marks can't be seen.
        takes: methods that it certainly takes, where it takes any.
    """

    place: Place
    path: str
    methods: Collection[str] | None
    target: Callable[[str], object]
    framework: str
    missing: str | None = None
    hides: bool = False
    takes: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Mounted:
    """An app inside of another."""

    place: Place
    app: Any


@dataclass(frozen=True, slots=True)
class Unseen:
    """A part whose routes can't be seen."""

    place: Place
    app: Any


Found = Endpoint | Mounted | Unseen | Finding


class Framework(Protocol):
    """A module that knows a framework."""

    def app_in(self, candidate: Any) -> Any:
        """The framework's app if that is what the candidate is, else None."""

    def look(self, app: Any, place: Place) -> Iterator[Found]:
        """What there is to be seen in the app."""


def always(target: object) -> Callable[[str], object]:
    """The target of an endpoint that is the same for all methods."""
    return lambda method: target


def walk(app: Any, place: Place) -> Iterator[Endpoint | Unseen | Finding]:
    """All routes of the app, whatever it is wrapped in, and what can't be seen."""
    for _ in range(MOST_LAYERS):
        for mounted in _dispatched(app, place):
            yield from walk(mounted.app, mounted.place)
        framework = _framework_of(app)
        if framework is not None:
            for found in framework.look(framework.app_in(app), place):
                if isinstance(found, Mounted):
                    yield from walk(found.app, found.place)
                else:
                    yield found
            return
        below = inner(app)
        if below is None:
            break
        place = place.within(app)
        app = below
    yield Unseen(place, app)


def inner(app: Any) -> Any:
    """The app that middleware is around, None if this is none."""
    if isinstance(app, functools.partial):
        return app.func
    if inspect.isclass(app):
        return None
    protocols = getattr(app, "application_mapping", None)  # of Channels' ProtocolTypeRouter
    if isinstance(protocols, dict):
        return protocols.get("http")
    # A function that is middleware has its app in the function that made it.
    holds = closed_over(app)
    for name in _INNER:
        below = holds.get(name, getattr(app, name, None))
        if callable(below):
            return below
    return getattr(app, "__wrapped__", None)


def is_retry_class(cls: object) -> bool:
    """Whether it is one of the two shells, or made of one; neither is imported to find out."""
    return isinstance(cls, type) and any(
        base.__module__ in _SHELLS and base.__name__ == "RetryMiddleware" for base in cls.__mro__
    )


def name_of(thing: Any) -> str:
    """The module and name of a function or class, or of the class of anything else."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "view_class", thing)
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def _framework_of(app: Any) -> Framework | None:
    for candidate in (app, getattr(app, "__self__", None)):
        for base in type(candidate).__mro__:
            module = _MODULES.get(base.__module__.partition(".")[0])
            if module is not None:
                framework: Any = importlib.import_module(f"{__package__}.{module}")
                if framework.app_in(app) is not None:
                    return framework  # type: ignore[no-any-return]  # a module is one
    return None


def _dispatched(app: Any, place: Place) -> Iterator[Mounted]:
    """What Werkzeug's DispatcherMiddleware has beside its app."""
    mounts = getattr(app, "mounts", None)
    if isinstance(mounts, dict) and inner(app) is not None:
        for path, mounted in mounts.items():
            yield Mounted(place.below(path), mounted)
