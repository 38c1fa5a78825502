"""How a test looks at a server: through the middleware, and without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .client import Client, Response
from .control import SECONDS, Control
from .servers import Running, WebServer

SOON = 0.3  # seconds; how long to wait for what is not to come

NORMAL = "yes"


class Asked(NamedTuple):
    """A request that a test makes up."""

    key: str
    path: str


class Way(NamedTuple):
    """The way to the app under one policy, `bare` without the middleware."""

    running: Running
    mount: str

    @property
    def replays(self) -> bool:
        return not self.mount.startswith("bare")

    @property
    def control(self) -> Control:
        return self.running.control

    def connect(self) -> Client:
        return self.running.connect()

    def new(self, name: str, *, fail: int = 0, read: int = 0, **options: object) -> Asked:
        """A request for `name`, of which so many attempts fail, if there is a middleware."""
        key = self.control.new_key()
        if self.replays:
            options |= {"fail": fail, "read": read}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return Asked(key, f"/{self.mount}/{name}/{key}?{query}")

    def runs(self, key: str) -> list[int]:
        """The numbers of the attempts."""
        return self.control.details(key, "attempt")

    def check(self, response: Response, *, attempts: int = 2, status: int = 200) -> None:
        """The response is the app's, and tells of so many attempts where there were some."""
        assert response.status == status
        expected = {
            "retry-attempts": str(attempts),
            "retry-outcome": "recovered",
            "retry-reason": "disconnection",
        }
        assert response.retried == (expected if self.replays and attempts > 1 else {})


Look = Callable[..., None]


def looking(running: Running) -> Look:
    """Returns what a test looks with: with the middleware and without, and sees the same."""

    def look(
        feature: str, observe: Callable[[Way], str], mount: str = "quick", bare: str = "bare"
    ) -> None:
        found = {name: observe(Way(running, name)) for name in (bare, mount)}
        _compare(running.server, feature, found)

    return look


def looking_anew(server: WebServer) -> Look:
    """The same, each time at a server that was just started."""

    def look(feature: str, observe: Callable[[Way], str], mount: str, grace: int) -> None:
        found = {}
        for name in ("bare", mount):
            with Running(server, grace=grace) as running:
                found[name] = observe(Way(running, name))
        _compare(server, feature, found)

    return look


def _compare(server: WebServer, feature: str, found: dict[str, str]) -> None:
    expected = server.says(feature)
    assert {*found.values()} <= {*expected.split(" or ")}, f"{feature}: {found}, not {expected}"


def patience(running: Running, feature: str) -> float:
    """Seconds to wait for what the feature is: few where the server is known not to have it."""
    return SECONDS if running.server.says(feature).startswith(NORMAL) else SOON


def goes_on(way: Way, client: Client) -> bool:
    """Whether another request is answered on the same connection, as far as it may be."""
    asked = way.new("hello", fail=1)
    try:
        response = client.get(asked.path)
    except ConnectionError:
        return not way.running.keeps_alive
    way.check(response)
    assert way.running.keeps_alive
    assert response.body == b"hello"
    return True
