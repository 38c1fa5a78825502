"""What a psycopg connection sends, told to the attempt that it is on loan to.

All that psycopg sends, it sends by a generator that is given to the connection's ``wait()``. What
that is, the generator's name and arguments tell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import attrgetter
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import psycopg
from psycopg import pq, sql, transaction
from psycopg.rows import Row

from retrymw._context import Attempt
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import UNDO_SECONDS
from retrymw.classify.sql import is_commit, without_comments

__all__ = ["INTERVAL", "Sent", "Watched", "sent_by", "synced", "within"]

T = TypeVar("T")

INTERVAL: Final = 0.1  # in seconds; how often psycopg looks whether it has waited long enough

_MAY_COMMIT: Final = b"DO"  # for a Tracker, a statement that may have a commit in it

# Name of a generator -> the argument that holds the statement.
_STATEMENTS: Final = {
    "_execute_gen": "query",
    "_executemany_gen_pipeline": "query",
    "_executemany_gen_no_pipeline": "query",
    "_declare_gen": "query",
    "_start_copy_gen": "statement",
    "_stream_send_gen": "query",
}
# Under autocommit, what went before is committed by then.
_ENDS: Final = (
    "_enter_gen",  # of a pipeline; that of a transaction is another one
    "_exit_gen",
    "_sync_gen",
    "_stream_fetchone_gen",
    "copy_end",
    "_set_autocommit_gen",  # these, as they sync a pipeline
    "_set_isolation_level_gen",
    "_set_read_only_gen",
    "_set_deferrable_gen",
)
_GO_ON: Final = (
    "_close_gen",
    "_end_copy_out_gen",
    "_fetch_gen",
    "_read_gen",
    "_read_row_gen",
    "_scroll_gen",
    "copy_to",
    "notifies",
)

_SETTINGS: Final = (
    "_autocommit",
    "_isolation_level",
    "_read_only",
    "_deferrable",
    "prepare_threshold",
    "prepared_max",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
)
_settings: Final[Callable[[object], tuple[Any, ...]]] = attrgetter(*_SETTINGS)


class Sent(NamedTuple):
    """What a generator sends.

    Attributes:
        statement: the SQL, or what stands for it; empty for what goes on with a statement.
        autocommit: whether the server commits it by itself.
        many: whether it is sent several times.
        follows: it has to be done whatever has failed before, or the connection is no use.
    """

    statement: bytes
    autocommit: bool = False
    many: bool = False
    follows: bool = False


def sent_by(connection: psycopg.BaseConnection[Any], gen: Any) -> Sent:
    """What the generator, which has not begun, sends. What isn't known may commit.

    In a pipeline under autocommit, what is sent until a sync is one transaction, which the sync
    commits: PostgreSQL documentation, "Pipelining".
    """
    name = getattr(gen, "__name__", "")
    if name in _STATEMENTS:
        return _statement(connection, name, gen.gi_frame.f_locals)
    if name == "_commit_gen":
        sends = connection.pgconn.transaction_status != pq.TransactionStatus.IDLE
        return Sent(b"COMMIT" if sends else b"")
    if name == "_rollback_gen":
        return Sent(b"ROLLBACK")
    if name in _ENDS:
        arguments = gen.gi_frame.f_locals
        if isinstance(arguments.get("self"), transaction.BaseTransaction):
            return _of_block(arguments["self"], name, arguments)
        implicit = connection._autocommit and not connection._num_transactions
        commits = implicit and arguments.get("first", True)
        return Sent(b"COMMIT" if commits else b"", follows=True)
    if name in _GO_ON:
        return Sent(b"", follows=True)
    return _two_phase(connection, name, gen)


def _statement(connection: psycopg.BaseConnection[Any], name: str, arguments: Any) -> Sent:
    """What is sent for the app, and answered unless it is but the beginning of something."""
    text = _text(arguments[_STATEMENTS[name]], connection)
    in_parts = connection._pipeline is not None or name == "_stream_send_gen"
    if name == "_start_copy_gen":
        text = without_comments(text)
        copied = text[len(b"COPY") :].lstrip()
        if copied.startswith(b"("):  # COPY (query) TO
            text = copied
        elif b"FROM" in text.upper():
            in_parts = True
        else:  # COPY table TO
            text = b"TABLE"
    many = name == "_executemany_gen_no_pipeline"
    return Sent(text, connection._autocommit and not in_parts, many)


def _of_block(block: Any, name: str, arguments: Any) -> Sent:
    """What the beginning or the end of a ``transaction()`` block sends."""
    if name == "_enter_gen":
        idle = block.pgconn.transaction_status == pq.TransactionStatus.IDLE
        return Sent(b"BEGIN" if idle else b"SAVEPOINT")
    if not block._outer_transaction:
        return Sent(b"", follows=True)
    undone = block.force_rollback or arguments["exc_val"] is not None
    return Sent(b"ROLLBACK" if undone else b"COMMIT")


def _two_phase(connection: psycopg.BaseConnection[Any], name: str, gen: Any) -> Sent:
    if name == "_tpc_begin_gen":
        return Sent(b"BEGIN")
    if name == "_tpc_prepare_gen":  # from here on the work outlives the connection
        return Sent(b"COMMIT")
    if name == "_tpc_finish_gen":
        if gen.gi_frame.f_locals["action"] == "ROLLBACK":
            return Sent(b"ROLLBACK")
        unprepared = connection._tpc is not None and not connection._tpc[1]
        return Sent(b"COMMIT" if unprepared else _MAY_COMMIT)
    return Sent(_MAY_COMMIT)


def _text(query: object, connection: psycopg.BaseConnection[Any]) -> bytes:
    if isinstance(query, str):
        return query.encode(errors="replace")
    if isinstance(query, sql.Composable):
        return query.as_bytes(connection)
    return query if isinstance(query, bytes) else sql.as_bytes(query, connection)  # a template


def synced(gen: Generator[Any, Any, T], pipeline: Any) -> Generator[Any, Any, T]:
    """The generator, and a sync of the pipeline after it, so that what it sent is answered."""
    result = yield from gen
    yield from pipeline._sync_gen()
    return result


def within(seconds: float, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """The generator, for so many seconds at most; then it raises ConnectionTimeout."""
    deadline = monotonic() + seconds
    ready = None
    while True:
        try:
            wanted = gen.send(ready)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # typeshed does not know of which
        ready = yield wanted
        if not ready and monotonic() > deadline:
            raise psycopg.errors.ConnectionTimeout("connection timeout expired")


class Watched(psycopg.BaseConnection[Row]):
    """What the connections of both kinds have in common.

    Attributes:
        tracker: who is told of failures and commits.
        opened: when the connection was made, by ``time.monotonic()``.
        was_cut: it was ended by us, because somebody was still at work with it.
        is_lent: the adapter has lent it, and nobody has taken it from the pool since.
    """

    _taken_from: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tracker = Tracker(psycopg.Error, ddl_commits=False)
        self.opened = monotonic()
        self.was_cut = self.is_lent = False
        self._found: tuple[Any, ...] = ()

    def lend(self, attempt: Attempt | None, database: object) -> None:
        """From here on the connection, as it is, is that attempt's, or nobody's."""
        self.tracker.lend(attempt, database)
        self.is_lent = True
        self._found = _settings(self)

    @property
    def _pool(self) -> Any:
        """psycopg's: the pool that the connection was taken from, None while it is in there."""
        return self._taken_from

    @_pool.setter
    def _pool(self, pool: Any) -> None:
        self._taken_from = pool
        if pool is not None:
            self.is_lent = False  # not yet; or it is taken past the adapter

    @property
    def was_dropped(self) -> bool:
        """Whether the server has ended the connection, or fallen silent."""
        return self.broken and not self.was_cut

    @property
    def was_closed_by_app(self) -> bool:
        """Whether somebody called ``close()``."""
        return self._closed

    def _check_connection_ok(self) -> None:
        if self.closed:
            with self.tracker.sending(b"", autocommit=False):
                super()._check_connection_ok()
        else:
            super()._check_connection_ok()

    def _sent_by(self, gen: Any) -> Sent | None:
        """What is to be tracked of what the generator sends."""
        if not self.is_lent:
            return None
        sent = sent_by(self, gen)
        return None if sent.follows and self.tracker.failed is not None else sent

    def _synced(self, gen: Generator[Any, Any, T], sent: Sent) -> Generator[Any, Any, T]:
        if self._pipeline is None or self.tracker.attempt is None:
            return gen
        if not is_commit(without_comments(sent.statement)):
            return gen
        return gen if sent.follows else synced(gen, self._pipeline)

    def check_not_aborted(self) -> None:
        """Raise if a COMMIT would be answered with a rollback, which psycopg takes for a success.

        Raises:
            psycopg.errors.InFailedSqlTransaction: PostgreSQL's own error for the statements that
                follow in such a transaction.
        """
        aborted = self.pgconn.transaction_status == pq.TransactionStatus.INERROR
        if aborted and self.tracker.failed is None:
            raise psycopg.errors.InFailedSqlTransaction(
                "the transaction can't be committed: a statement in it was refused or cancelled, "
                "and the app has gone on; roll back, or use a transaction() block around it"
            )

    def _check_failed(self, *, begins: bool = False) -> None:
        """Raise the failure that the transaction is not to survive, unless it is over."""
        if self.tracker.failed is None:
            return
        if begins and self.pgconn.transaction_status == pq.TransactionStatus.IDLE:
            with self.tracker.sending(b"ROLLBACK", autocommit=False):
                return  # the server has refused its COMMIT, and so undone it
        raise self.tracker.failed

    def _is_ongoing(self) -> bool:
        """Whether something has begun that a ROLLBACK does not end."""
        active = self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
        return active or bool(self._num_transactions or self._tpc or self._pipeline)

    def _rollback_soon(self) -> Generator[Any, Any, None]:
        return within(UNDO_SECONDS, self._rollback_gen())

    def _restore(self) -> None:
        """Back to what was found, for the next use."""
        if _settings(self) != self._found:
            for name, value in zip(_SETTINGS, self._found, strict=True):
                setattr(self, name, value)
            self._begin_statement = b""
