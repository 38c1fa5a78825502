"""Frames as drivers leave them in a traceback, and what classify makes of an exception."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from retrymw.classify import classify


def verdict(exc: BaseException) -> tuple[str, str] | None:
    """Kind and phase of what classify makes of the exception; that has to be its own."""
    failure = classify(exc)
    return None if failure is None else (failure.kind, failure.phase)


def passed_through(exc: Exception, *frames: tuple[str, str, dict[str, Any]]) -> Exception:
    """The exception, raised through functions, innermost first: (module, name, local variables)."""
    step: Callable[[], Any] | None = None
    for module, name, variables in frames:
        body = "step()" if step else "raise exc"
        source = f"def {name}(exc, step, {', '.join(variables)}):\n    {body}"
        scope: dict[str, Any] = {"__name__": module}
        exec(compile(source, f"{module}.py", "exec"), scope)  # noqa: S102  # the source is above
        step = partial(scope[name], exc, step, **variables)
    return caught(step) if step else exc


def caught(function: Any, *args: Any, **kwargs: Any) -> Exception:
    """What the call raises."""
    try:
        function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001  # it is looked at
        return exc
    raise AssertionError(f"{function} did not raise")
