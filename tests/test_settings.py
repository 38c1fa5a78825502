"""What the middleware is given is checked at start-up, by name and value."""

from __future__ import annotations

import functools

import pytest

from retrymw import RetryPolicy
from retrymw._core.policy import is_async
from retrymw._settings import Settings


class Database:
    """Has what a database has to have."""

    def rollback(self, attempt):
        pass

    def release(self, attempt):
        pass

    def ping(self):
        pass


def settings(
    policy=None, databases=(), hooks=(), *, find_endpoint=id, max_waiting=lambda request: 3
):
    return Settings(policy, databases, hooks, find_endpoint=find_endpoint, max_waiting=max_waiting)


async def coroutine_function(report):
    pass


class AsyncHook:
    async def __call__(self, report):
        pass


def test_defaults():
    """Nothing has to be given: the policy is the default one."""
    made = settings()
    assert isinstance(made.policy, RetryPolicy)
    assert (made.databases, made.hooks) == ((), ())
    assert (made.holds_all, made.always_told) == (False, False)


def test_what_was_given():
    """What was given is kept, in its order; an iterator will do."""
    policy, one, two = RetryPolicy(hold="until-return", expose="always"), Database(), Database()
    made = settings(policy, iter([one, two]), [print])
    assert made.policy is policy
    assert made.databases == (one, two)
    assert made.hooks == (print,)
    assert (made.holds_all, made.always_told) == (True, True)


@pytest.mark.parametrize("policy", [{}, "default", RetryPolicy, 5])
def test_wrong_policy(policy):
    """The policy is a RetryPolicy: the message names the argument and the value."""
    with pytest.raises(TypeError, match=r"policy is .*allowed: a RetryPolicy"):
        settings(policy)


@pytest.mark.parametrize(
    "databases", [None, Database(), 3, [None], ["mysql://"], "mysql://", [object()], [Database]]
)
def test_wrong_databases(databases):
    """Databases are a list of adapter objects: not one of them alone, not a URL, not the class."""
    with pytest.raises(TypeError, match=r"databases (is|has) .*allowed: "):
        settings(databases=databases)


@pytest.mark.parametrize("missing", ["rollback", "release", "ping"])
def test_database_without_a_method(missing):
    """An adapter that lacks a method would be found out in the first outage: it is at start-up."""
    database = Database()
    setattr(database, missing, None)
    with pytest.raises(TypeError, match="rollback, release and ping"):
        settings(databases=[database])


@pytest.mark.parametrize(
    "hooks",
    [
        None,
        print,
        [None],
        ["print"],
        [coroutine_function],
        [functools.partial(coroutine_function)],
        [AsyncHook()],
    ],
    ids=["none", "function", "list of none", "name", "async", "partial of async", "async object"],
)
def test_wrong_hooks(hooks):
    """Hooks are a list of functions that are not async: nobody would await what they give."""
    with pytest.raises(TypeError, match=r"hooks (is|has) .*allowed: "):
        settings(hooks=hooks)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (print, False),
        (lambda: None, False),
        (Database(), False),
        (coroutine_function, True),
        (functools.partial(coroutine_function), True),
        (AsyncHook(), True),
        (AsyncHook().__call__, True),
    ],
    ids=["builtin", "lambda", "object", "async", "partial", "async object", "async method"],
)
def test_is_async(function, expected):
    """Functions, partials, methods and callable objects are told apart by what a call gives."""
    assert is_async(function) is expected


def test_unit_of_work():
    """A database that is to be committed by the middleware has a commit()."""

    class Unit(Database):
        commits_on_success = True

    with pytest.raises(TypeError, match="commits_on_success"):
        settings(databases=[Unit()])
    unit = Unit()
    unit.commit = lambda attempt: None
    assert settings(databases=[Database(), unit]).units == (unit,)
