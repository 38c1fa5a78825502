"""Drivers of the user's own, and exceptions of Python's own that a driver lets through."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import ssl
from collections.abc import Iterator

import httpx
import pytest

from retrymw.classify import Failure, classify, phase_of, register
from retrymw.classify._frames import REGISTRY
from tests.classify.helpers import caught, passed_through, verdict

Full = type("Full", (Exception,), {"__module__": "shopdb.errors"})
Closed = type("Closed", (Exception,), {"__module__": "shopdb.errors"})


def shopdb(exc: BaseException) -> Failure | None:
    """What the user writes: the driver's codes, and what it lets through."""
    if isinstance(exc, Full):
        return Failure("too-many-connections", "connect", exc, 4711, "shopdb")
    if isinstance(exc, (Closed, OSError, EOFError)) or type(exc).__name__ == "TimeoutError":
        return Failure("disconnection", phase_of(exc), exc, driver="shopdb")
    return None


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Leave no package behind."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
    classify.__globals__["_package_of"].cache_clear()


@pytest.fixture
def registered() -> None:
    register(
        "shopdb",
        shopdb,
        phases={"connect": "connect", "commit": "commit", "run": "execute"},
        statements={"run": "sql"},
    )


def test_unknown_until_registered():
    """What was unknown a moment ago is known from now on."""
    assert classify(Full()) is None
    register("shopdb", shopdb)
    failure = classify(Full())
    assert (failure.kind, failure.code, failure.driver) == ("too-many-connections", 4711, "shopdb")


def test_subclass_and_wrapper(registered):
    """A subclass in the app's own module, and what wraps it, are found as for any driver."""
    subclass = type("ShopFull", (Full,), {"__module__": "shop.errors"})
    wrapper = RuntimeError()
    wrapper.__cause__ = subclass()
    assert verdict(wrapper) == ("too-many-connections", "connect")


@pytest.mark.parametrize(
    ("phase", "frame"),
    [
        ("connect", ("shopdb.api", "connect", {})),
        ("commit", ("shopdb.api", "commit", {})),
        ("execute", ("shopdb.api", "run", {"sql": "SELECT 1"})),
        ("commit", ("shopdb.api", "run", {"sql": "COMMIT"})),
        ("unknown", ("shop.views", "commit", {})),
    ],
)
def test_phases(registered, phase, frame):
    """G4: the frames of the registered package tell the phase, and the statement does."""
    assert verdict(passed_through(Closed(), frame)) == ("disconnection", phase)


def test_known_package_is_replaced():
    """The last word on a package is the user's."""
    register("pymysql", shopdb)
    lost = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})(2013, "Lost")
    assert classify(lost) is None


def test_classifier_that_fails(caplog):
    """G7: a mistake in a classifier is logged, and does not take the exception's place."""
    register("shopdb", lambda exc: exc.nonsense)
    assert classify(Full()) is None
    assert "type Full" in caplog.text
    assert "nonsense" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("shop.db", shopdb), ValueError, "'shop.db'"),
        (("", shopdb), ValueError, "top-level package"),
        (("shopdb", None), TypeError, "classifier=None"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    """What can't work is said at once, with the argument and its value."""
    with pytest.raises(error, match=message):
        register(*arguments)


def test_wrong_phase():
    """A phase is one of four."""
    with pytest.raises(ValueError, match=r"\{'commit': 'committing'\}.*connect, execute, commit"):
        register("shopdb", shopdb, phases={"commit": "committing"})


# Python's own exceptions.

BUILTIN = [
    ConnectionRefusedError(111, "Connection refused"),
    ConnectionResetError(104, "Connection reset by peer"),
    TimeoutError(),
    OSError("Multiple exceptions"),
    FileNotFoundError(2, "No such file or directory"),
    EOFError(),
    socket.gaierror(-2, "Name or service not known"),
    ssl.SSLEOFError(),
    asyncio.TimeoutError(),
    asyncio.IncompleteReadError(b"", 4),
    concurrent.futures.TimeoutError(),
]
DRIVER = ("shopdb.api", "connect", {})
LOOP = ("asyncio.selector_events", "sock_connect", {})
CLIENT = ("httpcore._backends.sync", "connect_tcp", {})
APP = ("shop.views", "buy", {})


def fresh(exc):
    """The exception, as if it had not been raised yet."""
    return exc.with_traceback(None)


@pytest.mark.parametrize("exc", BUILTIN, ids=repr)
@pytest.mark.parametrize("transport", [(), (LOOP,), (("gevent._socket3", "connect", {}),)])
def test_raised_in_the_driver(registered, exc, transport):
    """An OSError or time limit is the driver's if its code is the last before the transport."""
    raised = passed_through(fresh(exc), *transport, DRIVER, APP)
    assert verdict(raised) == ("disconnection", "connect")


@pytest.mark.parametrize("exc", BUILTIN, ids=repr)
@pytest.mark.parametrize(
    "frames",
    [(), (APP,), (LOOP, APP), (CLIENT, APP), (LOOP, CLIENT, APP), (CLIENT, APP, DRIVER, APP)],
    ids=["never raised", "app", "wait_for", "HTTP client", "in a loop", "in a driver's callback"],
)
def test_raised_elsewhere(registered, exc, frames):
    """The same from the app, an HTTP client, or a time limit of the app's is not ours."""
    assert classify(passed_through(fresh(exc), *frames)) is None


def test_another_exception_in_the_driver(registered):
    """Only what may come from a socket or a wait is given to the driver's classifier."""
    assert classify(passed_through(ValueError(), DRIVER, APP)) is None


def test_refused_http_client():
    """A real HTTP client whose server is not there does not cause a replay."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        exc = caught(httpx.get, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert isinstance(exc, httpx.ConnectError)
    assert classify(exc) is None


def test_http_client_in_vain_after_a_lost_connection(registered):
    """What the app tries while it deals with a failure does not hide that."""

    def view():
        try:
            raise Full
        except Full:
            raise passed_through(ConnectionRefusedError(), CLIENT)  # noqa: B904

    assert verdict(caught(view)) == ("too-many-connections", "connect")
