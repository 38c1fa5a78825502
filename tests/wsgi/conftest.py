"""The middleware as the tests of the WSGI shell use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from wsgiref.validate import validator

import pytest

from retrymw._waiting import WaitingRooms
from retrymw.typing import WSGIApp

from .helpers import wrap


@pytest.fixture(params=["plain", "validated"])
def retry(request: pytest.FixtureRequest) -> Callable[..., WSGIApp]:
    """``wrap``; every test runs again with wsgiref's validator on both sides of the middleware."""
    if request.param == "plain":
        return wrap

    def validated(app: WSGIApp, **options: Any) -> WSGIApp:
        return validator(wrap(validator(app), **options))  # type: ignore[arg-type]

    return validated


@pytest.fixture(params=["plain", "validated"])
def outside(request: pytest.FixtureRequest) -> Callable[..., WSGIApp]:
    """``retry`` without the inner validator, which forbids some reads and hides a list's length."""
    if request.param == "plain":
        return wrap
    return lambda app, **options: validator(wrap(app, **options))  # type: ignore[arg-type]


@pytest.fixture
def on_wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], object]], None]:
    """Give it a function to call in place of every wait, with the seconds; then it is one's turn.

    Requests that queue, having not begun, have their turn at once.
    """

    def replace(wait: Callable[[float], object]) -> None:
        def take_turn(rooms: WaitingRooms, run: Any, seconds: float) -> None:
            place = run.place
            if place.state == "leaving":
                wait(seconds)
                rooms.wait(place, 0.0)
            if place.state == "waiting":
                place.room.queue.remove(place)
                place.room.running += 1
                place.state = "running"

        monkeypatch.setattr("retrymw.wsgi.wait_turn", take_turn)

    return replace
