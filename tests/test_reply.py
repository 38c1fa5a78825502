"""What the client is told: the headers of every response, and the 503."""

from __future__ import annotations

import json
import logging
import math
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw import _reply
from retrymw._core.exchange import Refuse
from tests.core.helpers import KINDS, OUTCOMES, failure, report

REFUSALS = [outcome for outcome in OUTCOMES if outcome != "recovered"]
WITHOUT_RETRY_AFTER = ["committed", "unknown"]
SECRETS = ["lost", "ConnectionError", "disconnection", "10.0.0.7", "/orders/17", "retrymw"]


def refuse(outcome="exhausted", retry_after=0.5, *, expose="replayed", accept="", failed=None):
    """The headers, as a dict with small keys, and the body."""
    if outcome in WITHOUT_RETRY_AFTER:
        retry_after = None
    told = report(outcome, failed or failure(exception=ConnectionError("lost 10.0.0.7")))
    headers, body = _reply.reply(Refuse(outcome, retry_after), told, expose, accept)
    names = [name.lower() for name, _ in headers]
    assert len(names) == len(set(names))
    return {name.lower(): value for name, value in headers}, body


def content_type(accept):
    headers, _ = refuse(accept=accept)
    return headers["content-type"].partition(";")[0]


# The headers of any response.


def test_recovered():
    """After a replay the client sees how many attempts it took, and why."""
    told = report("recovered", failure("too-many-connections"), failure())
    assert _reply.headers(told, "replayed") == [
        ("Retry-Attempts", "3"),
        ("Retry-Reason", "disconnection"),
        ("Retry-Outcome", "recovered"),
        ("Server-Timing", 'retry;dur=152;desc="2 replays"'),
    ]


@pytest.mark.parametrize(
    ("attempts", "description"), [(1, "0 replays"), (2, "1 replay"), (6, "5 replays")]
)
def test_number_of_replays(attempts, description):
    """Server-Timing counts replays, in good English."""
    told = _reply.headers(report("recovered", failure(), attempts=attempts), "always")
    assert dict(told)["Server-Timing"] == f'retry;dur=152;desc="{description}"'


def test_outcome_that_is_open():
    """Where the outcome is not known when the headers are sent, they don't guess."""
    told = dict(_reply.headers(report(None, failure()), "replayed"))
    assert told["Retry-Attempts"] == "2"
    assert "Retry-Outcome" not in told


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("kind", KINDS)
def test_words(outcome, kind):
    """Kind and outcome are told in the words of the glossary."""
    told = dict(_reply.headers(report(outcome, failure(kind)), "replayed"))
    assert told["Retry-Outcome"] == outcome
    assert told["Retry-Reason"] == kind


@pytest.mark.parametrize(
    ("expose", "failed", "names"),
    [
        ("replayed", False, []),
        ("always", False, ["Retry-Attempts"]),
        ("never", False, []),
        ("never", True, []),
    ],
)
def test_expose(expose, failed, names):
    """G5: nothing is told when nothing happened, but for expose="always"; never is never."""
    told = report("recovered", failure()) if failed else report(None)
    assert [name for name, _ in _reply.headers(told, expose)] == names


def test_expose_is_alike_once_something_happened():
    """ "always" and "replayed" tell the same of an exchange in which something failed."""
    told = report("recovered", failure())
    assert _reply.headers(told, "always") == _reply.headers(told, "replayed")


def test_first_attempt_that_is_always_told():
    """With expose="always" a request that nothing befell says that it took one attempt."""
    assert _reply.headers(report(None), "always") == [("Retry-Attempts", "1")]


# The app's own headers.


@pytest.mark.parametrize("name", ["Retry-Attempts", "retry-outcome", "RETRY-REASON"])
def test_own_header_is_kept(name, caplog):
    """An app's own header of the same name is not overwritten, and the log says so."""
    told = _reply.headers(report("recovered", failure()), "replayed")
    with caplog.at_level(logging.WARNING, "retrymw"):
        added = _reply.missing(told, ["Content-Type", name])
    assert {n.lower() for n, _ in told} - {n.lower() for n, _ in added} == {name.lower()}
    [record] = caplog.records
    assert name.lower() in record.getMessage().lower()


def test_server_timing_is_appended(caplog):
    """Server-Timing is a list: ours is one more line, whatever the app has said."""
    told = _reply.headers(report("recovered", failure()), "replayed")
    assert _reply.missing(told, ["Server-Timing", "server-timing"]) == told
    assert not caplog.records


# The 503: its headers.


@pytest.mark.parametrize("expose", ["replayed", "always", "never"])
@pytest.mark.parametrize("outcome", REFUSALS)
def test_refusal_headers(outcome, expose):
    """G4, G10: a 503 is not stored, and says when to come back unless that is not the advice."""
    headers, body = refuse(outcome, expose=expose)
    assert headers["cache-control"] == "no-store"
    assert headers["content-length"] == str(len(body))
    assert ("retry-after" in headers) == (outcome not in WITHOUT_RETRY_AFTER)
    assert ("retry-outcome" in headers) == (expose != "never")
    if expose != "never":
        assert headers["retry-outcome"] == outcome
        assert headers["retry-attempts"] == "1"


@given(st.floats(0, 600))
def test_retry_after_is_whole_seconds(wait):
    """G10: Retry-After is a whole number, at least 1, and never earlier than the next wait ends."""
    headers, _ = refuse(retry_after=wait)
    assert headers["retry-after"].isdecimal()
    assert max(1, wait) <= int(headers["retry-after"]) <= 2 * math.ceil(max(1, wait))


@pytest.mark.parametrize("wait", [0.0, 0.05, 1, 4, 30])
def test_retry_after_is_jittered(wait):
    """G10: the clients that one outage has refused are not all told to come back together."""
    assert len({refuse(retry_after=wait)[0]["retry-after"] for _ in range(64)}) > 1


def test_retry_after_of_an_endless_wait():
    """G10: a wait without end still makes a 503, with a number that a client can use, if any."""
    headers, _ = refuse("deadline", float("inf"))
    assert len(headers.get("retry-after", "1")) < 12


@pytest.mark.parametrize("name", ["content-type", "retry-outcome", "server-timing"])
def test_header_values_are_plain(name):
    """Header values are printable ASCII on one line."""
    headers, _ = refuse()
    assert headers[name].isascii()
    assert headers[name].isprintable()


# The 503: its body.


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/*", "application/problem+json"),
        ("application/json", "application/problem+json"),
        ("application/problem+json", "application/problem+json"),
        ("text/html", "text/html"),
        ("text/plain", "text/plain"),
        ("text/*", "text/html"),
        # a browser
        (
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
            "text/html",
        ),
        # weights
        ("text/html;q=0.5, application/json", "application/problem+json"),
        ("text/html;q=0.5, application/json;q=0.4", "text/html"),
        ("text/plain;q=0.2, text/html;q=0.1", "text/plain"),
        ("text/plain ; q = 0.2 , text/html ; q = 0.1", "text/plain"),
        ("TEXT/HTML;Q=0.9", "text/html"),
        ("text/html;level=1;q=0.9, text/plain;q=0.5", "text/html"),
        # the most specific range counts, wherever it stands
        ("*/*, text/html;q=0, text/plain;q=0.9", "application/problem+json"),
        ("text/*;q=0.3, text/plain;q=0.2, */*;q=0.1", "text/html"),
        ("text/html;q=0, text/*", "text/plain"),
        ("*/*;q=0.1, application/*;q=0, text/html;q=0", "text/plain"),
        # nothing that we have
        ("image/png", "application/problem+json"),
        ("*/*;q=0", "application/problem+json"),
        # malformed
        ("text/html;q=high, text/plain;q=0.1", "text/plain"),
        ("text/html;q=nan, text/plain;q=0.1", "text/plain"),
        ("text/html;q=-1, text/plain;q=0.1", "text/plain"),
        ("text/html;q=, text/plain;q=0.1", "text/plain"),
        (",;,=;q=1, text/html", "text/html"),
        ("html", "application/problem+json"),
        ("*", "application/problem+json"),
        ("\xff/\x00;q", "application/problem+json"),
    ],
)
def test_negotiation(accept, expected):
    """The body is what the client likes best of problem+json, HTML and text (RFC 9110 §12.5.1)."""
    assert content_type(accept) == expected


@given(st.text(alphabet='*/;,=q. 0123456789texhmlapicon+js\t"', max_size=60))
def test_any_accept_header_is_answered(accept):
    """G10: whatever a client sends as Accept, it gets its 503."""
    types = {"application/problem+json", "text/html", "text/plain"}
    assert content_type(accept) in types


@pytest.mark.parametrize("outcome", REFUSALS)
def test_problem_json(outcome):
    """The problem has the members of RFC 9457."""
    headers, body = refuse(outcome)
    problem = json.loads(body)
    assert headers["content-type"] == "application/problem+json"
    assert problem["status"] == 503
    assert problem["title"] == "Service Unavailable"
    assert problem["type"] == "about:blank"


def test_html():
    """The page is well-formed enough to be read, and says its encoding."""
    headers, body = refuse(accept="text/html")
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append(tag)
    parser.handle_endtag = seen.remove
    parser.feed(body.decode())
    assert seen == []
    assert headers["content-type"] == "text/html; charset=utf-8"


def test_text():
    """The text says its encoding, and is a line or two."""
    headers, body = refuse(accept="text/plain")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert body.startswith(b"Service Unavailable\n")


@pytest.mark.parametrize("accept", ["*/*", "text/html", "text/plain"])
@pytest.mark.parametrize("outcome", REFUSALS)
def test_advice(outcome, accept):
    """G4: only where nothing was committed does the body say that one may try again."""
    _, body = refuse(outcome, accept=accept)
    assert (b"try again" in body) == (outcome not in WITHOUT_RETRY_AFTER)
    assert (b"check the result" in body) == (outcome in WITHOUT_RETRY_AFTER)


@pytest.mark.parametrize("accept", ["*/*", "text/html", "text/plain", "<script>"])
@pytest.mark.parametrize("outcome", REFUSALS)
def test_nothing_internal_leaks(outcome, accept):
    """G10: no exception, address, path or word of ours is in the body."""
    _, body = refuse(outcome, accept=accept)
    assert not [secret for secret in [*SECRETS, "<script>"] if secret in body.decode()]


@pytest.mark.parametrize("expose", ["replayed", "always", "never"])
def test_no_exception_in_the_headers(expose):
    """G10: the headers tell the kind of failure, never the exception."""
    failed = failure(exception=ConnectionError("10.0.0.7"), code=2013, driver="pymysql")
    headers, _ = refuse(expose=expose, failed=failed)
    told = " ".join(headers.values())
    assert not [secret for secret in ("10.0.0.7", "2013", "pymysql", "Error") if secret in told]
