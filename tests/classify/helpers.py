"""Frames as drivers leave them in a traceback, and what classify makes of an exception."""

from __future__ import annotations

from typing import Any

from retrymw.classify import classify


def verdict(exc: BaseException) -> tuple[str, str] | None:
    """Kind and phase of what classify makes of the exception; that has to be its own."""
    failure = classify(exc)
    return None if failure is None else (failure.kind, failure.phase)


def passed_through(exc: Exception, *frames: tuple[str, str, dict[str, Any]]) -> Exception:
    """The exception, raised through functions, innermost first: (module, name, local variables)."""
    for module, name, variables in frames:
        source = f"def {name}(exc, {', '.join(variables)}):\n    raise exc"
        scope: dict[str, Any] = {"__name__": module}
        exec(compile(source, f"{module}.py", "exec"), scope)  # noqa: S102  # the source is above
        exc = caught(scope[name], exc, **variables)
    return exc


def caught(function: Any, *args: Any, **kwargs: Any) -> Exception:
    """What the call raises."""
    try:
        function(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001  # it is looked at
        return exc
    raise AssertionError(f"{function} did not raise")
