"""Frameworks that turn exceptions into responses before middleware around them could see one."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Final

__all__ = ["warn_of"]

_MOST_WRAPPERS: Final = 16


def warn_of(squashing: Collection[str], shell: str, app: object) -> None:
    """Warn if ``app`` is of such a framework, in whatever it is wrapped: it has an integration.

    Args:
        squashing: packages, or classes of one as ``"flask.Flask"``.
        shell: the module of the middleware that was put around it.
        app: what that was given.
    """
    for _ in range(_MOST_WRAPPERS):
        owner = getattr(app, "__self__", app)  # of a bound method, such as app.wsgi_app
        for base in type(owner).__mro__:
            name = base.__module__.partition(".")[0]
            if name in squashing or f"{name}.{base.__name__}" in squashing:
                warnings.warn(
                    f"{shell}.RetryMiddleware around {owner!r} can't see the exceptions that "
                    f"{name.capitalize()} turns into responses, so it won't replay their "
                    f"requests; use retrymw.integrations.{name}.Retry instead",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return
        app = getattr(owner, "app", None)  # what Werkzeug's and most other middleware wraps
