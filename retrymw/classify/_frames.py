"""The phase of a failure, read off the traceback where the driver or its layer is Python.

A lost COMMIT answer looks like any other lost connection to the driver; what it was doing is in
the frames the exception passed through. SQL text is looked at too: ``execute("COMMIT")`` is legal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from retrymw.classify.sql import commits, reads
from retrymw.exceptions import Phase

__all__ = ["autocommits", "phase_of"]

# package -> function -> the phase it runs in.
_FUNCTIONS: Final[Mapping[str, Mapping[str, Phase]]] = {
    "pymysql": {
        "connect": "connect",
        "commit": "commit",
        "query": "execute",
        "rollback": "execute",
    },
    "MySQLdb": {"__init__": "connect", "_query": "execute", "query": "execute"},
    "psycopg": {
        "connect": "connect",
        "commit": "commit",
        "_commit_gen": "commit",
        "execute": "execute",
        "executemany": "execute",
        "stream": "execute",
        "copy": "execute",
        "rollback": "execute",
        "_rollback_gen": "execute",
        "_enter_gen": "execute",
        "_check_connection_ok": "execute",
    },
    "psycopg2": {"connect": "connect"},
    "sqlalchemy": {
        "do_commit": "commit",
        "do_commit_twophase": "commit",
        "do_execute": "execute",
        "do_executemany": "execute",
        "do_execute_no_params": "execute",
        "do_rollback": "execute",
    },
}

# The local variable that holds the statement, in the functions that are given one.
_STATEMENTS: Final[Mapping[tuple[str, str], str]] = {
    ("pymysql", "query"): "sql",
    ("MySQLdb", "_query"): "q",
    ("MySQLdb", "query"): "query",
    ("psycopg", "execute"): "query",
    ("psycopg", "executemany"): "query",
    ("psycopg", "copy"): "statement",
    ("sqlalchemy", "do_execute"): "statement",
}

# A driver's connect may run statements of its own, and a commit may be one: the rarer one tells.
_PRECEDENCE: Final[tuple[Phase, ...]] = ("connect", "commit", "execute")


def phase_of(exc: BaseException) -> Phase:
    """Where ``exc`` struck, by the frames it passed through; ``unknown`` if they don't tell."""
    found: set[Phase] = set()
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        functions = _FUNCTIONS.get(package)
        if functions is not None:
            function = frame.f_code.co_name
            phase = functions.get(function)
            if phase is not None:
                found.add(phase)
            variable = _STATEMENTS.get((package, function))
            if variable is not None:
                statement = frame.f_locals.get(variable)
                if commits(statement) or (
                    autocommits(frame.f_locals.get("self")) and not reads(statement)
                ):
                    found.add("commit")
        traceback = traceback.tb_next
    return next((phase for phase in _PRECEDENCE if phase in found), "unknown")


def autocommits(owner: object) -> bool:
    """Whether every statement of this connection, or cursor of one, is a commit of its own."""
    try:
        connection: Any = getattr(owner, "connection", None) or owner
        if getattr(connection, "_num_transactions", 0):  # in a block of psycopg's transaction()
            return False
        asked = getattr(connection, "get_autocommit", None)
        return (asked() if asked is not None else getattr(connection, "autocommit", False)) is True
    except Exception:  # one that is gone may not want to be asked: then it can't be ruled out
        return True
