"""``retrymw explain``: what a code means, and what becomes of the request."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, get_args

import click

from retrymw._core.exchange import Exchange, Refuse
from retrymw._core.failure import Failure
from retrymw._core.policy import Mark, MarkKind, RetryPolicy
from retrymw.commands._meanings import BY_TEXT, MEANINGS, Meaning, find
from retrymw.exceptions import Phase

__all__ = ["explain"]


class _Endpoint(NamedTuple):
    """A kind of endpoint, and an example of it that the exchange can judge."""

    name: str
    method: str
    mark: MarkKind | None = None


_ENDPOINTS: Final = (
    _Endpoint("GET, HEAD, OPTIONS, TRACE, QUERY", "GET"),
    _Endpoint("PUT, DELETE", "PUT"),
    _Endpoint("POST, PATCH and others, unmarked", "POST"),
    _Endpoint("@rollback_safe", "POST", MarkKind.ROLLBACK_SAFE),
    _Endpoint("@idempotent", "POST", MarkKind.IDEMPOTENT),
    _Endpoint("@never_replay, or a fence", "GET", MarkKind.NEVER_REPLAY),
)

_PLACES: Final[dict[Phase, str]] = {
    "connect": "while connecting",
    "execute": "in a statement",
    "commit": "in the COMMIT",
    "unknown": "not known where",
}

_WHY: Final = {
    "not-replayable": "not-replayable: nothing says that this endpoint may run twice; a mark can.",
    "committed": "committed: what was committed would be done twice.",
    "unknown": "unknown: the COMMIT may have been carried out, and would be done twice.",
}

_KINDS: Final = {
    "disconnection": "The connection is gone, and with it all of the transaction that was not "
    "committed. A new connection may work.",
    "too-many-connections": "A refused connection has done nothing. Once another client has left "
    "there is room.",
    "conflict": "The server said no, so this attempt's transaction is undone. Next time the other "
    "one is over.",
}


@click.command("explain")
@click.argument("code")
@click.pass_context
def explain(ctx: click.Context, code: str) -> None:
    """Explain an error code: what it means, whether the request is replayed, and why.

    CODE is a number of MariaDB, MySQL or SQLite (1040), an SQLSTATE (53300, 57P01) or the name of
    either (ER_CON_COUNT_ERROR, too_many_connections).

    Exit status: 0; 1 if it is no failure that retrymw knows.
    """
    found = find(code)
    for meaning in found:
        click.echo("\n".join(_lines(meaning)))
    if found:
        return
    wanted = code.strip().upper()
    if wanted in BY_TEXT:
        click.echo(_filled(f"{wanted}: {BY_TEXT[wanted]}"))
        return
    click.echo(
        _filled(
            f"{code} is none of the {len(MEANINGS)} codes by which retrymw knows that the "
            "connection failed, that there was none left, or that two transactions were in "
            "conflict. So the exception is not replayed: it passes untouched."
        ),
    )
    ctx.exit(1)


def _lines(meaning: Meaning) -> Iterator[str]:
    yield f"{meaning.code} {meaning.name} ({meaning.server})"
    yield ""
    yield _filled(meaning.text)
    yield ""
    yield f"kind:  {meaning.kind}"
    yield f"phase: {meaning.phase or 'as the traceback tells'}"
    yield ""
    yield _filled(_KINDS[meaning.kind])
    yield ""
    columns = _columns(meaning)
    titles = ["Is the request replayed?", *columns]
    rows = [[end.name, *cells] for end, *cells in zip(_ENDPOINTS, *columns.values(), strict=True)]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
    yield ""
    outcomes = {cell.partition(": ")[2] for cells in columns.values() for cell in cells}
    yield from (_filled(why) for outcome, why in _WHY.items() if outcome in outcomes)


def _columns(meaning: Meaning) -> dict[str, tuple[str, ...]]:
    """By where it struck, and what was committed before: an answer for each kind of endpoint."""
    phases: Iterable[Phase] = (meaning.phase,) if meaning.phase else get_args(Phase)
    places: dict[tuple[str, ...], list[str]] = {}
    for phase in phases:
        places.setdefault(_answers(meaning, phase), []).append(_PLACES[phase])
    if len(places) == 1:
        [answers] = places
        columns = {"before any commit": answers}
    else:
        columns = {" or ".join(where): answers for answers, where in places.items()}
    after = _answers(meaning, next(iter(phases)), committed=True)
    return columns if after in columns.values() else {**columns, "after a commit": after}


def _answers(meaning: Meaning, phase: Phase, *, committed: bool = False) -> tuple[str, ...]:
    """What the exchange decides for each kind of endpoint."""
    failure = Failure(meaning.kind, phase, Exception())
    answers = []
    for endpoint in _ENDPOINTS:
        exchange = Exchange(RetryPolicy(), endpoint.method, now=0)
        exchange.mark = Mark(endpoint.mark) if endpoint.mark else None
        if committed:
            exchange.commit_sent()
            exchange.commit_answered(committed=True)
        command = exchange.ended(0, failure=failure, raised=True, status=None)
        answers.append(f"no: {command.outcome}" if isinstance(command, Refuse) else "yes")
    return tuple(answers)


def _filled(text: str) -> str:
    return textwrap.fill(text, width=80)
