"""``retrymw check``: which routes of an app are replayed, and what will surprise."""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args

import click

from retrymw._core.policy import Mark
from retrymw.check import Checked, Code, Route
from retrymw.check import check as check_app

__all__ = ["check"]


class AppError(click.ClickException):
    """The app can't be checked. Exit code 2, as for wrong usage: 1 says that there are findings."""

    exit_code = 2


@click.command("check")
@click.argument("app", metavar="MODULE:APP")
@click.option("--factory", is_flag=True, help="APP is a function that makes the app.")
@click.option("--app-dir", default=".", metavar="DIR", help="Import from here.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option("--ignore", multiple=True, metavar="CODE", help="Leave out; may be repeated.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 in spite of findings.")
def check(
    app: str, factory: bool, app_dir: str, as_json: bool, ignore: tuple[str, ...], exit_zero: bool
) -> None:
    """Show which routes of an app are replayed, and what will surprise.

    MODULE:APP is what the server is given, such as shop.main:app or shop.main:create_app().

    Exit status: 0 nothing was found; 1 there are findings; 2 the app can't be checked, or the
    command line is wrong.
    """
    for code in ignore:
        if code not in get_args(Code):
            raise click.BadParameter(
                f"{code!r}; allowed: {', '.join(get_args(Code))}", param_hint="--ignore"
            )
    sys.path.insert(0, os.path.abspath(app_dir))
    loaded = _load(app, factory=factory)
    try:
        checked = check_app(loaded)
    except Exception as error:  # the app's own as well: Django imports its URLs only now
        raise _broken(f"{app!r} can't be checked") from error
    findings = tuple(finding for finding in checked.findings if finding.code not in ignore)
    checked = replace(checked, findings=findings)
    if as_json:
        click.echo(json.dumps(checked, default=_as_json, indent=2))
    else:
        click.echo("\n".join(_as_text(app, checked)))
    if checked.findings and not exit_zero:
        sys.exit(1)


def _load(target: str, *, factory: bool) -> Any:
    """Import the app, as uvicorn and gunicorn do."""
    module_name, _, expression = target.partition(":")
    if not module_name or not expression:
        raise AppError(f"{target!r} is not MODULE:APP, such as shop.main:app")
    try:
        app = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(f"{module_name!r} can't be imported") from error
        raise AppError(f"there is no module {error.name!r}; is --app-dir right?") from error
    except (Exception, SystemExit) as error:  # the app's own; it is shown
        raise _broken(f"{module_name!r} can't be imported") from error
    try:
        node = ast.parse(expression, mode="eval").body
        call = node if isinstance(node, ast.Call) else None
        name = ast.unparse(call.func if call else node)
        args = [ast.literal_eval(arg) for arg in call.args] if call else []
        more = {key.arg or "": ast.literal_eval(key.value) for key in call.keywords} if call else {}
    except (SyntaxError, ValueError) as error:
        raise AppError(
            f"{expression!r} is neither a name nor a call with literals, such as create_app()"
        ) from error
    for attribute in name.split("."):
        if not hasattr(app, attribute):
            raise AppError(f"module {module_name!r} has no {name!r}")
        app = getattr(app, attribute)
    if not callable(app):
        raise AppError(f"{target!r} is {app!r}; allowed: a WSGI or ASGI app")
    if not call and not factory:
        return app
    try:
        return app(*args, **more)
    except (Exception, SystemExit) as error:  # as above
        raise _broken(f"{name}() can't make the app") from error


def _broken(what: str) -> AppError:
    return AppError(f"{what}\n\n{traceback.format_exc()}")


def _as_json(value: Any) -> Any:
    """What JSON does not know."""
    if isinstance(value, Mark):
        return _mark(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return sorted(value) if isinstance(value, frozenset) else repr(value)


def _as_text(app: str, checked: Checked) -> Iterable[str]:
    yield f"{app}: {', '.join(checked.frameworks) or 'no framework that is known'}"
    for middleware in checked.middleware:
        policy = middleware.policy
        yield (
            f"{middleware.shell.upper()} RetryMiddleware around {middleware.prefix}: "
            f"max_replays={policy.max_replays}, deadline={policy.deadline:g} s, "
            f"hold={policy.hold!r}, databases: {', '.join(middleware.databases) or 'none'}"
        )
    if checked.routes:
        yield ""
        yield from _table(
            ("METHODS", "PATH", "ENDPOINT", "MARK", "REPLAYED", "WHY"),
            *(
                (
                    ",".join(route.methods),
                    route.path,
                    route.endpoint,
                    _mark(route.mark) if route.mark else "-",
                    _replayed(route),
                    route.why,
                )
                for route in checked.routes
            ),
        )
    if checked.unseen:
        yield ""
        yield from (f"no routes to be seen: {part}" for part in checked.unseen)
    yield ""
    yield from map(str, checked.findings)
    count = len(checked.findings)
    yield f"{count} {'finding' if count == 1 else 'findings'}"


def _table(*rows: tuple[str, ...]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _mark(mark: Mark) -> str:
    overrides = ", ".join(f"{name}={value!r}" for name, value in mark.overrides.items())
    return f"@{mark.kind.value}" + (f"({overrides})" if overrides else "")


def _replayed(route: Route) -> str:
    if route.before_commit and route.after_commit and route.commit_unknown:
        return "always"
    return "before a commit" if route.before_commit else "never"
