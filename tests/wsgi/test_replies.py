"""What the client is told: the headers of a response, and the 503."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from retrymw import DisconnectionError, TooManyConnections, current_attempt

from .helpers import TEXT, Attempts, answer, doing, generate, lost, request, serve, squashing

RETRY = {"Retry-Attempts", "Retry-Reason", "Retry-Outcome", "Server-Timing"}


def told(reply: Any) -> set[str]:
    return RETRY & set(reply.headers.keys())


@pytest.mark.parametrize(
    "app", [answer(), generate(b"hello"), answer((), "204 No Content", []), answer(written=[b"x"])]
)
def test_headers_of_a_recovered_response(retry: Any, app: Any) -> None:
    """A response that took replays says so."""
    reply = serve(retry(Attempts(TooManyConnections(), lost(), app)))
    assert reply.headers["Retry-Attempts"] == "3"
    assert reply.headers["Retry-Reason"] == "disconnection"
    assert reply.headers["Retry-Outcome"] == "recovered"
    assert 'desc="2 replays"' in (reply.headers["Server-Timing"] or "")
    assert reply.headers["Retry-After"] is None


@pytest.mark.parametrize(
    ("expose", "quiet", "recovered"),
    [("replayed", set(), RETRY), ("always", {"Retry-Attempts"}, RETRY), ("never", set(), set())],
)
@pytest.mark.parametrize("app", [answer(), generate(b"hello")])
def test_expose(retry: Any, expose: str, quiet: set[str], recovered: set[str], app: Any) -> None:
    """G5: the policy says when the headers tell; by default only when something happened."""
    assert told(serve(retry(app, expose=expose))) == quiet
    assert told(serve(retry(Attempts(lost(), app), expose=expose))) == recovered
    refused = serve(retry(Attempts(lost()), expose=expose, max_replays=0))
    assert told(refused) == recovered
    assert refused.headers["Retry-After"] is not None


@pytest.mark.parametrize("name", ["Retry-Attempts", "retry-reason", "RETRY-OUTCOME"])
def test_headers_of_the_app_are_kept(
    retry: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """An app's own header of the same name is kept, and the log says so."""
    app = answer(headers=[*TEXT, (name, "mine")])
    reply = serve(retry(Attempts(lost(), app)))
    assert reply.headers.get_all(name) == ["mine"]
    assert told(reply) == (RETRY - {name.title()}) | (told(reply) & {name})
    [record] = [record for record in caplog.records if "is kept" in record.getMessage()]
    assert record.levelno == logging.WARNING


def test_server_timing_is_added_to(retry: Any) -> None:
    """Server-Timing is a list: the app's own entry stays, ours joins it."""
    app = answer(headers=[*TEXT, ("Server-Timing", "db;dur=5")])
    reply = serve(retry(Attempts(lost(), app)))
    mine, ours = reply.headers.get_all("Server-Timing")
    assert (mine, ours.startswith("retry;dur=")) == ("db;dur=5", True)


def test_header_list_of_the_app_is_not_changed(retry: Any) -> None:
    """G5: a list of headers that an app uses for every response stays as it is."""
    headers = list(TEXT)

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", headers)
        return [b"hello"]

    assert told(serve(retry(Attempts(lost(), app)))) == RETRY
    assert headers == TEXT


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("text/plain", "text/plain; charset=utf-8"),
        ("image/png", "application/problem+json"),
    ],
)
def test_refusal(retry: Any, accept: str, content_type: str) -> None:
    """G10: the 503 is negotiated, not stored, and says when to come back and nothing internal."""
    app = Attempts(DisconnectionError("secret-host:3306"))
    environ = request(**({"HTTP_ACCEPT": accept} if accept else {}))
    reply = serve(retry(app, max_replays=1), environ)
    assert reply.status == 503
    assert reply.headers["Content-Type"] == content_type
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Cache-Control"] == "no-store"
    assert int(reply.headers["Retry-After"] or 0) >= 1
    assert reply.headers["Retry-Attempts"] == "2"
    assert reply.outcome == "exhausted"
    assert b"secret" not in reply.body
    assert "secret" not in str(reply.headers)
    if content_type == "application/problem+json":
        assert json.loads(reply.body)["status"] == 503


def test_refusal_replaces_what_was_held(retry: Any) -> None:
    """G1: nothing of a squashed response is left in the 503."""
    failing = answer((b"oops",), "500 Internal Server Error", [*TEXT, ("X-App", "1")])
    reply = serve(retry(squashing(lost(), failing), max_replays=2))
    assert (reply.status, reply.outcome, reply.starts) == (503, "exhausted", 1)
    assert b"oops" not in reply.body
    assert "X-App" not in reply.headers


@pytest.mark.parametrize("accept", ["", "text/html"])
def test_refusal_of_head(retry: Any, accept: str) -> None:
    """The 503 to a HEAD request has the headers of the one to a GET, and no body."""
    app = Attempts(lost())
    get, head = (
        serve(retry(app, max_replays=0), request(method, HTTP_ACCEPT=accept))
        for method in ("GET", "HEAD")
    )
    assert head.body == b""
    assert head.headers.keys() == get.headers.keys()
    assert head.headers["Content-Length"] == str(len(get.body))


@pytest.mark.parametrize("outcome", ["committed", "unknown"])
def test_refusal_after_a_commit(retry: Any, outcome: str) -> None:
    """G4: where the work may have been done, coming back is not the advice."""

    def view() -> None:
        current_attempt().commit_sent()
        if outcome == "committed":
            current_attempt().commit_answered(committed=True)
        raise lost()

    reply = serve(retry(doing(view, answer())), request("POST", HTTP_ACCEPT="text/plain"))
    assert (reply.status, reply.outcome) == (503, outcome)
    assert reply.headers["Retry-After"] is None
    assert b"check the result" in reply.body
