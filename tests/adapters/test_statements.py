"""What statements do to a transaction: which of them commit, and what is known after a failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw.adapters._statements import STAYS, Transaction, look

INSERT, SELECT, COMMIT = map(look, (b"INSERT INTO t VALUES (1)", b"SELECT 1", b"COMMIT"))


def after(*statements: bytes, ddl_commits: bool = True, autocommit: bool = False) -> Transaction:
    """A transaction in which these were answered."""
    transaction = Transaction(ddl_commits=ddl_commits)
    for statement in statements:
        transaction.answered(look(statement), autocommit=autocommit)
    return transaction


@pytest.mark.parametrize(
    "statement",
    [
        b"COMMIT",
        b"commit work",
        b"/* so */ COMMIT",
        b"BEGIN",
        b"START TRANSACTION",
        b"SET autocommit = 1",
        b"CREATE TABLE u (a INT)",
        b"LOCK TABLES t WRITE",
        b"CALL p()",
        b"DELETE FROM t; COMMIT",
    ],
)
def test_commits_work_in_mysql(statement: bytes) -> None:
    """After a write each of these makes it durable."""
    assert after(b"INSERT INTO t VALUES (1)").commits(look(statement), autocommit=False)


@pytest.mark.parametrize(
    "statement",
    [
        b"SELECT 1",
        b"INSERT INTO t VALUES ('a; COMMIT')",
        b"ROLLBACK",
        b"SAVEPOINT a",
        b"ROLLBACK TO SAVEPOINT a",
        b"SET NAMES utf8mb4",
        b"SET @a = 1",
        b"SET autocommit = 0",
        b"SET SESSION lock_wait_timeout = 5",
    ],
)
def test_commits_nothing(statement: bytes) -> None:
    """None of these makes a write before it durable."""
    assert not after(b"INSERT INTO t VALUES (1)").commits(look(statement), autocommit=False)


@pytest.mark.parametrize("statement", [b"BEGIN", b"CREATE TABLE u (a INT)", b"SET LOCAL x = 1"])
def test_commits_nothing_in_postgresql(statement: bytes) -> None:
    """Where DDL is a part of the transaction, these commit nothing."""
    transaction = after(b"INSERT INTO t VALUES (1)", ddl_commits=False)
    assert not transaction.commits(look(statement), autocommit=False)


@pytest.mark.parametrize(
    "statement", [b"PREPARE TRANSACTION 'a'", b"COMMIT PREPARED 'a'", b"XA COMMIT 'a'"]
)
@pytest.mark.parametrize("ddl_commits", [True, False])
def test_two_phases(statement: bytes, ddl_commits: bool) -> None:
    """What is prepared outlives the connection, and may be the work of another one."""
    assert Transaction(ddl_commits=ddl_commits).commits(look(statement), autocommit=False)


def test_nothing_to_commit() -> None:
    """A COMMIT after nothing but reading, or after a rollback, commits nothing."""
    assert not after(b"SELECT 1").commits(COMMIT, autocommit=False)
    assert not after(b"INSERT INTO t VALUES (1)", b"ROLLBACK").commits(COMMIT, autocommit=False)
    assert not after(b"INSERT INTO t VALUES (1)", b"ABORT").commits(COMMIT, autocommit=False)


def test_autocommit() -> None:
    """Under autocommit a write is its own commit, unless a BEGIN went before it."""
    assert Transaction().commits(INSERT, autocommit=True)
    assert not Transaction().commits(SELECT, autocommit=True)
    assert not after(b"BEGIN", autocommit=True).commits(INSERT, autocommit=True)


def test_lost_write_may_have_been_carried_out() -> None:
    """A write without an answer is work, if a commit follows after all."""
    transaction = Transaction()
    transaction.failed(INSERT, answered=False, autocommit=False)
    assert transaction.commits(COMMIT, autocommit=False)


def test_refused_write_is_no_work() -> None:
    """A write that was refused left nothing; but the transaction is doubtful until it ends."""
    transaction = Transaction()
    transaction.failed(INSERT, answered=True, autocommit=False)
    assert not transaction.commits(COMMIT, autocommit=False)
    assert transaction.doubtful
    transaction.answered(look(b"ROLLBACK"), autocommit=False)
    assert not transaction.doubtful


def test_refused_many_may_be_half_done() -> None:
    """Of many some may have been carried out."""
    transaction = Transaction()
    transaction.failed(INSERT, answered=True, autocommit=False, many=True)
    assert transaction.commits(COMMIT, autocommit=False)


def test_refused_ddl_ends_the_transaction() -> None:
    """MariaDB and MySQL commit before DDL, even if it is refused: what follows is autocommitted."""
    transaction = after(b"BEGIN", b"INSERT INTO t VALUES (1)", autocommit=True)
    ddl = look(b"CREATE TABLE t (a INT)")
    assert transaction.refused(ddl)
    transaction.failed(ddl, answered=True, autocommit=True)
    assert transaction.commits(INSERT, autocommit=True)


def test_refused_commit_ends_the_transaction() -> None:
    """A COMMIT that was refused committed nothing, and nothing is left."""
    transaction = after(b"INSERT INTO t VALUES (1)")
    assert not transaction.refused(COMMIT)
    transaction.failed(COMMIT, answered=True, autocommit=False)
    assert not transaction.commits(COMMIT, autocommit=False)


@pytest.mark.parametrize(
    "statement",
    [
        b"USE other",
        b"LOCK TABLES t WRITE",
        b"CREATE TEMPORARY TABLE u (a INT)",
        b"SELECT GET_LOCK('a', 1)",
    ],
)
def test_stays_in_the_session(statement: bytes) -> None:
    """What a rollback does not undo is known."""
    assert look(statement)[0] & STAYS


STATEMENTS = st.sampled_from(
    [
        b"BEGIN",
        b"COMMIT",
        b"ROLLBACK",
        b"SELECT 1",
        b"INSERT INTO t VALUES (1)",
        b"CREATE TABLE u (a INT)",
        b"CALL p()",
        b"SAVEPOINT a",
    ]
)


@given(st.lists(st.tuples(STATEMENTS, st.booleans())), st.booleans())
def test_work_is_never_forgotten(script: list[tuple[bytes, bool]], autocommit: bool) -> None:
    """Whatever goes wrong on the way, a COMMIT after a write that was answered is one."""
    transaction = Transaction()
    for statement, fails in script:
        if fails:
            transaction.failed(look(statement), answered=False, autocommit=autocommit)
        else:
            transaction.answered(look(statement), autocommit=autocommit)
    own = transaction.commits(INSERT, autocommit=autocommit)
    transaction.answered(INSERT, autocommit=autocommit)
    assert own or transaction.commits(COMMIT, autocommit=autocommit)
