"""Which requests are alike."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw._core.routes import Routes, route_of

TOKEN = "dGhpcyBpcyBhIHRva2VuIG9mIHNvbWUgc29ydA"  # without a digit, a name is a name up to 32


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("", ""),
        ("*", "*"),
        ("/orders", "/orders"),
        ("/orders/", "/orders/"),
        ("/orders/17", "/orders/*"),
        ("/orders/17/items/3", "/orders/*/items/*"),
        ("/orders/17/items", "/orders/*/items"),
        ("/orders/17.json", "/orders/*"),
        ("/orders/f47ac10b-58cc-4372-a567-0e02b2c3d479", "/orders/*"),
        ("/archive/2026-11-20/log", "/archive/*/log"),
        ("/users/alice@example.com", "/users/*"),
        ("/files/a=b", "/files/*"),
        ("/mail/urn:isbn", "/mail/*"),
        ("/t/" + "a" * 33, "/t/*"),
        ("/t/" + "a" * 32, "/t/" + "a" * 32),
        ("/reset/" + TOKEN, "/reset/*"),
        ("//17", "//*"),
    ],
)
def test_names_of_things_are_left_out(path, expected):
    """Numbers, UUIDs, dates, tokens and addresses name one thing of many; words name a kind."""
    assert route_of("GET", path) == f"GET {expected}"


def test_methods_are_told_apart():
    """A POST may fail where a GET works."""
    assert route_of("GET", "/orders/17") != route_of("POST", "/orders/17")
    assert route_of("GET", "/orders/17") == route_of("GET", "/orders/18")


@given(st.text(), st.text())
def test_any_path_has_a_route(method, path):
    """Whatever a client sends is a route, and is its own kind once it has failed."""
    routes = Routes()
    route = route_of(method, path)
    routes.add(route)
    assert route in routes


@given(st.text(alphabet="/a1*", max_size=12))
def test_route_of_a_route_is_the_same(path):
    """What stands for the name of a thing is no name that would be left out again."""
    once = route_of("GET", path)
    assert route_of("GET", once.removeprefix("GET ")) == once


def test_only_what_failed_is_in():
    """Other routes, and other methods of the same path, are not."""
    routes = Routes()
    assert "GET /orders/*" not in routes
    routes.add("GET /orders/*")
    assert "GET /orders/*" in routes
    assert "POST /orders/*" not in routes
    assert "GET /orders" not in routes
    assert "GET /static" not in routes
    assert len(routes) == 1


def test_many_siblings_are_one_route():
    """/users/alice, /users/bob and so on: after eight of them, every name will do."""
    routes = Routes()
    for name in "abcdefgh":
        routes.add(f"GET /users/{name}")
    assert "GET /users/zoe" not in routes
    routes.add("GET /users/i")
    assert "GET /users/zoe" in routes
    assert "GET /users/zoe/orders" not in routes
    assert "POST /users/zoe" not in routes
    assert "GET /static" not in routes


def test_failing_again_is_not_a_sibling():
    """The same few routes failing over and over stay the same few."""
    routes = Routes()
    for _ in range(100):
        for name in "abc":
            routes.add(f"GET /users/{name}")
    assert len(routes) == 3
    assert "GET /users/zoe" not in routes


def test_there_is_a_limit():
    """G2: a client that asks for ever new paths doesn't fill the memory."""
    routes = Routes()
    for one in range(100):
        for two in range(100):
            routes.add(f"GET /{'a' * one}/{'b' * two}")
            routes.add(f"GET /{'a' * one}/{'b' * two}/end")
    assert len(routes) <= 500
    assert "GET /a/b" in routes  # the first ones are remembered


def test_thing_that_failed_says_nothing_of_the_page_beside_it():
    """/orders/new is no order, though /orders/17 has failed."""
    routes = Routes()
    routes.add("GET /orders/*")
    assert "GET /orders/new" not in routes


def test_pages_at_the_root_are_no_siblings():
    """However many of them have failed, /static is another."""
    routes = Routes()
    for name in "abcdefghijklm":
        routes.add(f"GET /{name}")
    assert "GET /static" not in routes
    assert "GET /" not in routes
