"""The policy: what it allows, what it says when it does not, and its waits."""

from __future__ import annotations

import dataclasses
import statistics

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from retrymw import RetryPolicy
from retrymw._core.policy import Mark, MarkKind
from tests.core.helpers import failure


class AsyncCallable:
    async def __call__(self, state):
        return 0.1


async def wait_async(state):
    return 0.1


WRONG_TYPES = {
    "max_replays": [None, "5", 5.0, True, [5]],
    "wait": [None, 0.1, "0.1", wait_async],
    "deadline": [None, "10", True, [10]],
    "kinds": [None, "conflict", 1, {1}, iter(["conflict"])],
    "methods": [None, "GET", b"GET", 1, {1}, {b"GET"}],
    "body_memory": [None, "1", 1.0, True],
    "body_limit": [None, "1", 1e6, True],
    "max_waiting": ["1", 1.0, True],
}
WRONG_VALUES = {
    "max_replays": [-1],
    "deadline": [0, -1, 0.0, float("inf"), float("nan")],
    "kinds": [{"deadlock"}, {"Disconnection"}, [""]],
    "methods": [{"get"}, {"Put"}, {""}],
    "body_memory": [-1],
    "body_limit": [-1, (1 << 20) - 1],
    "max_waiting": [-1],
    "hold": [None, "", "first", "until_return", ["first-chunk"]],
    "expose": [None, True, "", "Always", "replay"],
}
ALLOWED = {
    "max_replays": "whole number, at least 0",
    "wait": "tenacity wait strategy",
    "deadline": "seconds",
    "kinds": "conflict, disconnection, too-many-connections|set of strings",
    "methods": "HTTP methods in capitals|set of strings",
    "body_memory": "whole number, at least 0",
    "body_limit": "whole number, at least 0|at least body_memory",
    "max_waiting": "whole number, at least 0",
    "hold": "'first-chunk' or 'until-return'",
    "expose": "'replayed' or 'always' or 'never'",
}


def each(wrong):
    return [
        pytest.param(field, value, id=f"{field}={value!r}".partition(" at 0x")[0])
        for field, values in wrong.items()
        for value in values
    ]


def check_message(error, field, value):
    message = str(error)
    assert f"RetryPolicy.{field} is {value!r}" in message
    assert any(words in message for words in ALLOWED[field].split("|"))


def test_every_field_is_tested():
    """Each field of the policy has a wrong value below, and words for what is allowed."""
    fields = {field.name for field in dataclasses.fields(RetryPolicy)}
    assert fields == WRONG_TYPES.keys() | WRONG_VALUES.keys() == ALLOWED.keys()


@pytest.mark.parametrize(("field", "value"), each(WRONG_TYPES))
def test_wrong_type(field, value):
    """A wrong type raises a TypeError that names the field, the value and what is allowed."""
    with pytest.raises(TypeError) as caught:
        RetryPolicy(**{field: value})
    check_message(caught.value, field, value)


@pytest.mark.parametrize(("field", "value"), each(WRONG_VALUES))
def test_wrong_value(field, value):
    """A wrong value raises a ValueError that says the field, the value and what is allowed."""
    with pytest.raises(ValueError, match="allowed") as caught:
        RetryPolicy(**{field: value})
    check_message(caught.value, field, value)


@pytest.mark.parametrize(
    "wait",
    [tenacity.wait_fixed, tenacity.wait_none, lambda: 0.1, AsyncCallable()],
    ids=["class", "class without arguments", "function without arguments", "async object"],
)
def test_wait_that_can_not_work_is_refused_at_start_up(wait):
    """What is callable but no wait strategy raises at start-up, not in the first outage."""
    with pytest.raises(TypeError, match=r"RetryPolicy\.wait is .* allowed: a tenacity"):
        RetryPolicy(wait=wait)


def test_wait_without_a_signature():
    """A builtin that does not tell its parameters is taken at its word."""
    assert RetryPolicy(wait=min).wait is min


@pytest.mark.parametrize("methods", [{"GET PUT"}, {"GET,PUT"}, {" GET"}, {"GET\n"}])
def test_methods_are_tokens(methods):
    """A set whose string can't be a method, as when it was not split, is refused (RFC 9110)."""
    with pytest.raises(ValueError, match=r"RetryPolicy\.methods is"):
        RetryPolicy(methods=methods)


def test_unknown_field():
    """A field that does not exist raises a TypeError that names it."""
    with pytest.raises(TypeError, match="max_retries"):
        RetryPolicy(max_retries=3)


def test_keywords_only():
    """A policy is given by keywords: positions would mean nothing to a reader."""
    with pytest.raises(TypeError):
        RetryPolicy(3)


def test_defaults():
    """The defaults are those of the public contract."""
    policy = RetryPolicy()
    assert policy.max_replays == 5
    assert policy.deadline == 10.0
    assert policy.kinds == {"disconnection", "too-many-connections", "conflict"}
    assert policy.methods == {"GET", "HEAD", "OPTIONS", "TRACE", "QUERY", "PUT", "DELETE"}
    assert policy.body_memory == 1 << 20
    assert policy.body_limit == 64 << 20
    assert policy.max_waiting is None
    assert policy.hold == "first-chunk"
    assert policy.expose == "replayed"
    assert isinstance(policy.wait, tenacity.wait_exponential_jitter)


def test_default_waits_span_six_seconds():
    """Five replays wait 0.05, 0.15, 0.45, 1.35 and 4 s, each with up to 0.05 s more."""
    policy = RetryPolicy()
    waits = [policy.wait_before(replay, failure()) for replay in range(1, 6)]
    for wait, base in zip(waits, [0.05, 0.15, 0.45, 1.35, 4.0], strict=True):
        assert base <= wait <= base + 0.05
    assert 6.0 <= sum(waits) <= 6.25


def test_default_waits_are_jittered():
    """G9: two requests that fail together do not come back together."""
    waits = [RetryPolicy().wait_before(1, failure()) for _ in range(20)]
    assert statistics.stdev(waits) > 0


@pytest.mark.parametrize("limit", [0, 1, 100])
def test_limits_may_be_at_their_bounds(limit):
    """The smallest values are allowed: no replays, nothing in memory, nobody waits."""
    policy = RetryPolicy(max_replays=limit, body_memory=limit, body_limit=limit, max_waiting=limit)
    assert policy.max_replays == limit


@pytest.mark.parametrize("deadline", [1, 0.001, 1e6])
def test_deadline_is_any_positive_number(deadline):
    """Whole and fractional seconds are both numbers."""
    assert RetryPolicy(deadline=deadline).deadline == deadline


@pytest.mark.parametrize("words", [["GET", "PUT"], ("PUT", "GET"), {"GET": 1, "PUT": 2}])
def test_collections_become_sets(words):
    """Kinds and methods are given as any collection of strings, and kept as a frozen set."""
    assert RetryPolicy(methods=words).methods == frozenset({"GET", "PUT"})
    assert RetryPolicy(kinds=["conflict"]).kinds == frozenset({"conflict"})


def test_frozen():
    """The rules of an exchange can't change while it goes on."""
    policy = RetryPolicy()
    for field in dataclasses.fields(policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field.name, getattr(policy, field.name))


def test_does_not_share_its_collections():
    """Changing the set that was given changes nothing of the policy."""
    methods = {"GET"}
    policy = RetryPolicy(methods=methods)
    methods.add("POST")
    assert policy.methods == {"GET"}


def test_replaced_policy_is_checked_too():
    """dataclasses.replace, which is how to derive one policy from another, checks as well."""
    with pytest.raises(ValueError, match="max_replays"):
        dataclasses.replace(RetryPolicy(), max_replays=-1)


# The wait strategy.


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        (tenacity.wait_none(), [0, 0, 0]),
        (tenacity.wait_fixed(0.5), [0.5, 0.5, 0.5]),
        (tenacity.wait_incrementing(start=1, increment=2), [1, 3, 5]),
        (tenacity.wait_exponential(multiplier=1, exp_base=2, max=3), [1, 2, 3]),
        (tenacity.wait_fixed(1) + tenacity.wait_incrementing(0, 1), [1, 2, 3]),
        (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2)), [1, 2, 2]),
        (tenacity.wait_combine(tenacity.wait_fixed(1), tenacity.wait_fixed(2)), [3, 3, 3]),
        (tenacity.wait_exception(lambda exc: len(exc.strerror)), [4, 4, 4]),
        (lambda state: state.attempt_number / 4, [0.25, 0.5, 0.75]),
    ],
    ids=lambda value: type(value).__name__ if callable(value) else "",
)
def test_any_tenacity_strategy(strategy, waits):
    """Tenacity's strategies, sums and chains of them, and functions of a state all work."""
    policy = RetryPolicy(wait=strategy)
    failed = failure(exception=ConnectionError(104, "lost"))
    assert [policy.wait_before(replay, failed) for replay in (1, 2, 3)] == waits


@pytest.mark.parametrize(
    "strategy", [tenacity.wait_random(1, 2), tenacity.wait_random_exponential(max=2)]
)
def test_random_strategy(strategy):
    """Strategies with randomness stay within their bounds."""
    policy = RetryPolicy(wait=strategy)
    assert all(0 <= policy.wait_before(replay, failure()) <= 2 for replay in range(1, 6))


def test_strategy_is_told_the_number_and_the_exception():
    """G7: a strategy sees which replay it is, and the original exception object."""
    states = []
    exc = ConnectionError("lost")

    def wait(state):
        states.append(state)
        return 0.1

    RetryPolicy(wait=wait).wait_before(3, failure(exception=exc))
    state = states[-1]
    assert state.attempt_number == 3
    assert state.outcome.failed
    assert state.outcome.exception() is exc
    assert "attempt #3" in repr(state)
    assert state.seconds_since_start >= 0


@pytest.mark.parametrize(
    ("said", "waited"),
    [(-1, 0.0), (float("nan"), 0.0), (0, 0.0), (1, 1.0), (float("inf"), float("inf"))],
)
def test_wait_is_a_length_of_time(said, waited):
    """Whatever a strategy says, the wait is a float and not negative."""
    wait = RetryPolicy(wait=lambda state: said).wait_before(1, failure())
    assert wait == waited
    assert isinstance(wait, float)


@given(st.floats(allow_nan=True, allow_infinity=True), st.integers(1, 100))
def test_no_wait_is_negative(said, replay):
    """Any number that a strategy gives is made a wait of 0 or more."""
    assert RetryPolicy(wait=lambda state: said).wait_before(replay, failure()) >= 0


# What a mark changes.


def test_overridden():
    """A mark's overrides replace fields; the others, and the policy itself, stay as they are."""
    policy = RetryPolicy(max_replays=3, deadline=5)
    changed = policy.overridden(Mark(MarkKind.IDEMPOTENT, {"deadline": 1.5}))
    assert (changed.max_replays, changed.deadline) == (3, 1.5)
    assert policy.deadline == 5
    assert changed.wait is policy.wait


@pytest.mark.parametrize("mark", [None, Mark(MarkKind.ROLLBACK_SAFE)])
def test_nothing_to_override(mark):
    """Without overrides the policy is the very same object."""
    policy = RetryPolicy()
    assert policy.overridden(mark) is policy
