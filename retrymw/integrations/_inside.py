"""What an integration tells from the inside of its framework: exceptions seen, endpoints found."""

from __future__ import annotations

from retrymw._context import current_attempt, running

__all__ = ["not_routed", "routed", "saw"]


def saw(exception: BaseException | None) -> None:
    """The framework has this exception, and may make a response of it."""
    attempt = current_attempt(None)
    if attempt is not None and exception is not None:
        attempt.saw(exception)


def routed(endpoint: object, environ: object = None) -> None:
    """The framework has found the endpoint of this exchange, and is about to call it.

    Args:
        environ: of the request that was routed, where it may be another than the exchange's.
    """
    run = running.get()
    # One that makes requests of its own app is still the endpoint that this exchange is of.
    if run is None or run.endpoint is not None:
        return
    if environ is None or environ is run.request:
        run.endpoint = endpoint


def not_routed(request: object) -> object:
    """The ``find_endpoint`` of an integration: what was not routed so far has no mark."""
    return None
