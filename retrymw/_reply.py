"""The headers that tell what happened, and the 503, for both shells."""

from __future__ import annotations

import html
import json
import logging
import math
import random
from collections.abc import Iterable
from typing import Final

from retrymw._core.exchange import Outcome, Refuse, Report
from retrymw._core.policy import Expose

__all__ = ["STATUS", "STATUS_LINE", "headers", "missing", "reply"]

STATUS: Final = 503
STATUS_LINE: Final = "503 Service Unavailable"
Headers = list[tuple[str, str]]

_LONGEST: Final = 3600.0  # seconds in Retry-After before jitter, whatever the strategy says
_TITLE: Final = "Service Unavailable"
_AGAIN: Final = "The service could not complete this request just now. Please try again later."
_DETAILS: Final[dict[Outcome, str]] = {
    "committed": "The request failed after some of its work was done. "
    "Please check the result before you repeat it.",
    "unknown": "The request failed and may or may not have been carried out. "
    "Please check the result before you repeat it.",
}
_PROBLEM, _HTML, _TEXT = "application/problem+json", "text/html", "text/plain"
_OFFERS: Final = (_PROBLEM, "application/json", _HTML, _TEXT)


def headers(report: Report, expose: Expose) -> Headers:
    """The ``Retry-…`` headers of a response, by ``RetryPolicy.expose``."""
    if expose == "never" or (expose == "replayed" and not report.failures):
        return []
    told = [("Retry-Attempts", str(report.attempts))]
    if report.failures:
        replays = max(0, report.attempts - 1)
        told.append(("Retry-Reason", report.failures[-1].kind))
        if report.outcome is not None:
            told.append(("Retry-Outcome", report.outcome))
        plural = "" if replays == 1 else "s"
        told.append(
            (
                "Server-Timing",
                f'retry;dur={report.elapsed * 1000:.0f};desc="{replays} replay{plural}"',
            )
        )
    return told


def missing(told: Headers, present: Iterable[str]) -> Headers:
    """What of ``told`` the app's own headers don't have: they are never overwritten.

    Server-Timing is a list: another line of it adds to the app's.
    """
    taken = {name.lower() for name in present} - {"server-timing"}
    kept = [(name, value) for name, value in told if name.lower() not in taken]
    for name, value in told:
        if name.lower() in taken:
            logging.getLogger("retrymw").warning(
                "the app's own header %s is kept; retrymw's was %r", name, value
            )
    return kept


def reply(refusal: Refuse, report: Report, expose: Expose, accept: str) -> tuple[Headers, bytes]:
    """The headers and body of the 503, negotiated by ``Accept`` (RFC 9110 §12.5.1).

    The body is problem+json (RFC 9457), HTML or text, and says nothing of the inside.
    ``Retry-After`` is in whole seconds, at least 1, jittered up to twice the next wait, so that the
    clients of one outage do not all come back at once (G10).
    """
    detail = _DETAILS.get(refusal.outcome, _AGAIN)
    content_type = _negotiate(accept)
    if content_type == _HTML:
        text = (
            f'<!doctype html>\n<html lang="en"><head><title>{_TITLE}</title></head>\n'
            f"<body><h1>{_TITLE}</h1><p>{html.escape(detail)}</p></body></html>\n"
        )
    elif content_type == _TEXT:
        text = f"{_TITLE}\n{detail}\n"
    else:
        problem = {"type": "about:blank", "title": _TITLE, "status": STATUS, "detail": detail}
        text = json.dumps(problem) + "\n"
    body = text.encode()
    if content_type in (_HTML, _TEXT):
        content_type += "; charset=utf-8"
    told = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    if refusal.retry_after is not None:
        least = math.ceil(min(max(1.0, refusal.retry_after), _LONGEST))
        seconds = random.randint(least, 2 * least)  # noqa: S311  # spreads load, keeps no secret
        told.append(("Retry-After", str(seconds)))
    return told + headers(report, expose), body


def _negotiate(accept: str) -> str:
    """What the client likes best of what we offer; problem+json if it does not care."""
    best, best_quality = _PROBLEM, 0.0
    for offer in _OFFERS:
        quality = _quality(offer, accept)
        if quality > best_quality:
            best, best_quality = offer, quality
    return _PROBLEM if best == "application/json" else best


def _quality(offer: str, accept: str) -> float:
    """The weight of ``offer`` by its most specific media range."""
    ranges = {"*/*": 1, offer.partition("/")[0] + "/*": 2, offer: 3}
    found, specificity = 0.0, 0
    for item in accept.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        rank = ranges.get(media, 0)
        if rank > specificity:
            specificity, found = rank, 1.0
            for parameter in parameters:
                name, _, value = parameter.partition("=")
                if name.strip() == "q":
                    try:
                        found = min(1.0, max(0.0, float(value)))
                    except ValueError:
                        found = 0.0
    return found
