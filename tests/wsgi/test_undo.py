"""G8: what a failed attempt has opened is rolled back and given back before anybody waits."""

from __future__ import annotations

import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from retrymw import DisconnectionError, current_attempt
from retrymw.typing import Environ, Report, StartResponse

from .helpers import (
    TEXT,
    Attempts,
    Chunks,
    FakeDatabase,
    Reply,
    answer,
    consume,
    doing,
    generate,
    lost,
    request,
    serve,
    squashing,
)

UNDONE = ["rollback", "release"]


@pytest.fixture
def order() -> list[str]:
    return []


@pytest.fixture
def database(order: list[str], on_wait: Any) -> FakeDatabase:
    """A database that records in ``order``, where waits are recorded too."""
    on_wait(lambda _: order.append("wait"))
    return FakeDatabase(order)


@pytest.mark.parametrize("squash", [False, True])
def test_order(retry: Any, order: list[str], database: FakeDatabase, squash: bool) -> None:
    """G8: roll back, release, hooks, then wait; a successful attempt is only released."""

    def view() -> None:
        order.append("view")
        database.open()
        attempt = current_attempt()
        attempt.on_rollback(lambda: order.append("on_rollback"))
        attempt.on_success(lambda: order.append("on_success"))

    def hook(report: Report) -> None:
        order.append(f"hook {report.attempts}")

    failing = squashing(lost()) if squash else Attempts(lost())
    app = Attempts(doing(view, failing), doing(view, answer()))
    serve(retry(app, databases=[database], hooks=[hook]))
    failed = ["view", *UNDONE, "on_rollback", "hook 1", "wait"]
    assert order == [*failed, "view", "release", "hook 2", "on_success"]


@pytest.mark.parametrize("squash", [False, True])
def test_classified_before_rolled_back(retry: Any, squash: bool) -> None:
    """G4, G8: a failure is judged while its evidence is there; rolling back may destroy it."""
    error = DisconnectionError("gone", phase="commit")
    database = FakeDatabase(rollback=lambda: setattr(error, "phase", "execute"))
    failing = squashing(error) if squash else Attempts(error)
    app = Attempts(doing(database.open, failing), answer())
    reply = serve(retry(app, databases=[database]), request("PUT"))
    assert (app.calls, reply.outcome) == (1, "unknown")


def test_every_attempt_is_undone(retry: Any, order: list[str], database: FakeDatabase) -> None:
    """G1, G8: no attempt leaves anything open, and nothing is open in a wait."""
    app = Attempts(doing(database.open, Attempts(lost())))
    reply = serve(retry(app, databases=[database], max_replays=2))
    assert reply.outcome == "exhausted"
    assert order == [*UNDONE, "wait", *UNDONE, "wait", *UNDONE]
    assert database.opened == 0


def test_only_what_was_used(retry: Any, order: list[str], database: FakeDatabase) -> None:
    """A database that an attempt did not use is left alone."""
    other = FakeDatabase(order, name="other ")
    app = Attempts(doing(database.open, Attempts(lost())), doing(other.open, answer()))
    serve(retry(app, databases=[database, other]))
    assert order == [*UNDONE, "wait", "other release"]


def test_all_roll_back_before_any_is_released(retry: Any) -> None:
    """Several databases are all rolled back, then all released."""
    order: list[str] = []
    one, two = FakeDatabase(order, name="one "), FakeDatabase(order, name="two ")
    app = Attempts(doing(one.open, doing(two.open, Attempts(lost()))), answer())
    serve(retry(app, databases=[one, two]))
    assert order == ["one rollback", "two rollback", "one release", "two release"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit()])
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("where", ["app", "iterable", "later chunk"])
def test_undone_whatever_passes(
    retry: Any, database: FakeDatabase, error: BaseException, failures: int, where: str
) -> None:
    """G1: what the app opened is rolled back and released, whatever exception passes."""
    failing = {
        "app": Attempts(error),
        "iterable": answer(Chunks(error)),
        "later chunk": answer(Chunks(b"x", error)),
    }[where]
    app = Attempts(*[lost()] * failures, doing(database.open, failing))
    with pytest.raises(type(error)) as raised:
        serve(retry(app, databases=[database]))
    assert raised.value is error
    assert [step for step in database.order if step != "wait"] == UNDONE


def test_opened_while_streaming(retry: Any, database: FakeDatabase) -> None:
    """What a stream opens is undone when its first chunk fails, and released when it is over."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        database.open()
        if not current_attempt().is_replay:
            raise lost()
        yield b"hel"
        assert database.opened == 1
        yield b"lo"

    assert serve(retry(app, databases=[database])).body == b"hello"
    assert database.order == [*UNDONE, "wait", "release"]


@pytest.mark.parametrize("expecting", [False, True])
def test_released_before_a_slow_client_reads(
    outside: Any, database: FakeDatabase, expecting: bool
) -> None:
    """A complete response holds no connection while the client reads it, on_success or not."""

    def view() -> None:
        database.open()
        if expecting:
            current_attempt().on_success(lambda: None)

    app = doing(view, answer((b"hel", b"lo")))
    reply = Reply()
    result = outside(app, databases=[database])(request(), lambda *_: reply.write)
    assert database.order == ["release"]
    assert consume(result) == [b"hel", b"lo"]


@pytest.mark.parametrize("what", ["rollback", "release"])
@pytest.mark.parametrize("error", [lost(), ZeroDivisionError()])
def test_errors_in_undoing_are_logged(
    retry: Any, caplog: pytest.LogCaptureFixture, what: str, error: Exception
) -> None:
    """G7: an error in rolling back or releasing is logged; the replay goes on, all are undone."""
    order: list[str] = []
    bad, good = FakeDatabase(order, **{what: error}), FakeDatabase(order)
    app = Attempts(doing(bad.open, doing(good.open, Attempts(lost()))), answer())
    assert serve(retry(app, databases=[bad, good])).body == b"hello"
    assert order == ["rollback", "rollback", "release", "release"]
    [record] = [record for record in caplog.records if what in record.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("what", ["rollback", "release"])
@pytest.mark.parametrize("passing", [ValueError("a bug"), KeyboardInterrupt()])
def test_errors_in_undoing_never_mask(retry: Any, what: str, passing: BaseException) -> None:
    """G7: neither do they mask an exception that passes."""
    database = FakeDatabase(**{what: ZeroDivisionError()})
    with pytest.raises(type(passing)) as raised:
        serve(retry(doing(database.open, Attempts(passing)), databases=[database]))
    assert raised.value is passing
    assert database.order == UNDONE


def test_errors_in_releasing_do_not_harm_a_success(
    retry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """G5: a response that is ready is sent, though giving back failed; that is logged."""
    database = FakeDatabase(release=ZeroDivisionError())
    app = doing(database.open, answer())
    assert serve(retry(app, databases=[database])).body == b"hello"
    assert "ZeroDivisionError" in caplog.text


def test_interrupted_while_rolling_back(retry: Any) -> None:
    """G1, G6: who interrupts a rollback passes, and the connection is given back all the same."""
    database = FakeDatabase(rollback=KeyboardInterrupt())
    app = Attempts(doing(database.open, Attempts(lost())), answer())
    with pytest.raises(KeyboardInterrupt):
        serve(retry(app, databases=[database]))
    assert (app.calls, database.opened) == (1, 0)


@pytest.mark.parametrize("what", ["wait", "find_endpoint"])
def test_errors_in_what_the_user_gave(retry: Any, on_wait: Any, what: str) -> None:
    """G1: a wait strategy or a find_endpoint that raises leaves no connection open."""
    database = FakeDatabase()
    on_wait(lambda _: None)  # which the default strategy asks for in place of what raises

    def wrong(_: Any) -> Any:
        raise ZeroDivisionError

    app = doing(database.open, Attempts(*[lost()] * 6))
    reply = serve(retry(app, databases=[database], **{what: wrong}))
    assert reply.outcome == "exhausted"  # the failure is what is told of
    assert database.opened == 0


def test_resources_of_an_attempt_that_is_over(retry: Any) -> None:
    """G1: a thread that outlives its attempt can't open anything in it."""
    database = FakeDatabase()
    late: list[Callable[[], object]] = []

    def view() -> None:
        context = contextvars.copy_context()
        late.append(lambda: context.run(database.open))

    again = doing(lambda: [open_late() for open_late in late], answer())
    app = Attempts(doing(view, Attempts(lost())), again)
    with pytest.raises(RuntimeError, match="is over"):
        serve(retry(app, databases=[database]))


def test_unknown_databases_are_refused(retry: Any) -> None:
    """G1: an adapter that the middleware does not know can't open what nobody would give back."""
    with pytest.raises(RuntimeError, match="does not know"):
        serve(retry(doing(FakeDatabase().open, answer())))


# Frames


class Connection:
    """Given back when its last reference goes, as in apps that use no adapter."""


class Connections:
    """Makes connections, and counts at each wait how many are alive."""

    def __init__(self) -> None:
        self._made: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.waits: list[int] = []

    def open(self) -> Connection:
        connection = Connection()
        self._made.add(connection)
        return connection

    def wait(self, _: float) -> None:
        self.waits.append(len(self._made))


@pytest.fixture
def connections(on_wait: Any) -> Iterator[Connections]:
    """The garbage collector does not help, as it would not in time."""
    connections = Connections()
    on_wait(connections.wait)
    gc.disable()
    yield connections
    gc.enable()


def raises(connections: Connections) -> None:
    connection = connections.open()
    raise DisconnectionError(f"gone: {connection}")


def wraps(connections: Connections) -> None:
    connection = connections.open()
    try:
        raises(connections)
    except DisconnectionError as exc:
        raise ValueError(f"in a service: {connection}") from exc


def calls_what_wraps(connections: Connections) -> None:
    connection = connections.open()
    wraps(connections)
    assert connection


def keeps_a_cycle(connections: Connections) -> None:
    connection = connections.open()
    try:
        raises(connections)
    except DisconnectionError as exc:
        kept = exc
        raise
    assert connection is kept


def hides(connections: Connections) -> None:
    connection = connections.open()
    try:
        raises(connections)
    except DisconnectionError as exc:
        current_attempt().saw(exc)
    raise ValueError(f"unchained: {connection}") from None


failing_views = pytest.mark.parametrize(
    "view", [raises, wraps, calls_what_wraps, keeps_a_cycle, hides]
)


@failing_views
@pytest.mark.parametrize("failures", [1, 2])
def test_locals_of_a_failed_attempt(
    retry: Any, connections: Connections, view: Any, failures: int
) -> None:
    """G8: the local variables of a failed attempt are freed before the wait."""
    app = Attempts(*[doing(lambda: view(connections), answer())] * failures, answer())
    assert serve(retry(app)).body == b"hello"
    assert connections.waits == [0] * failures


@failing_views
@pytest.mark.parametrize("failures", [1, 2])
def test_locals_of_a_failed_generator(
    retry: Any, connections: Connections, view: Any, failures: int
) -> None:
    """G8: the same for an app that is a generator, and one that returned one."""
    generator = generate(lambda: view(connections))
    assert serve(retry(Attempts(*[generator] * failures, answer()))).body == b"hello"
    returned = (answer(Chunks(lambda: view(connections))) for _ in range(failures))
    assert serve(retry(Attempts(*returned, answer()))).body == b"hello"
    assert connections.waits == [0] * 2 * failures


def test_locals_of_a_squashed_failure(retry: Any, connections: Connections) -> None:
    """G8: the same where the app squashed the failure."""

    def app(environ: Environ, start_response: StartResponse) -> Any:
        connection = connections.open()
        try:
            raises(connections)
        except DisconnectionError as exc:
            current_attempt().doom(exc)
        body = f"oops, {connection}".encode()
        return answer((body,), "500 Internal Server Error")(environ, start_response)

    assert serve(retry(Attempts(app, answer()))).body == b"hello"
    assert connections.waits == [0]


def test_locals_of_a_squashed_wrapper(retry: Any, connections: Connections) -> None:
    """G8: the same where what the app squashed was its own exception around the failure."""

    def app(environ: Environ, start_response: StartResponse) -> Any:
        try:
            calls_what_wraps(connections)
        except ValueError as exc:
            current_attempt().saw(exc)
        return answer((b"oops",), "500 Internal Server Error")(environ, start_response)

    assert serve(retry(Attempts(app, answer()))).body == b"hello"
    assert connections.waits == [0]


def test_iterable_of_a_failed_attempt(retry: Any, connections: Connections) -> None:
    """G8: the iterable itself is let go of, with what it has."""

    def app(environ: Environ, start_response: StartResponse) -> Any:
        chunks = Chunks(lost())
        chunks.connection = connections.open()  # type: ignore[attr-defined]
        return answer(chunks)(environ, start_response)

    assert serve(retry(Attempts(app, answer()))).body == b"hello"
    assert connections.waits == [0]


def test_exc_info_of_a_failed_attempt(retry: Any, connections: Connections) -> None:
    """G8: what start_response() was given in exc_info is let go of, wrapped failure or not."""

    def app(environ: Environ, start_response: StartResponse) -> Any:
        try:
            calls_what_wraps(connections)
        except ValueError:
            start_response("500 Internal Server Error", TEXT, sys.exc_info())  # type: ignore[arg-type]
        return [b"oops"]

    assert serve(retry(Attempts(app, answer()))).body == b"hello"
    assert connections.waits == [0]


def test_cause_stays_readable(retry: Any) -> None:
    """G7: line numbers stay: the traceback still says where a failed attempt failed."""
    reports: list[Report] = []

    def view() -> None:
        raise lost()

    serve(retry(Attempts(doing(view, answer()), answer()), hooks=[reports.append]))
    traceback = reports[-1].failures[0].exception.__traceback__
    names = []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "view"
