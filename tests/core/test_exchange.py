"""The exchange, against the decision table as this file has it, and rule by rule."""

from __future__ import annotations

import weakref
from itertools import product

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from retrymw import RetryPolicy
from retrymw._core.exchange import MAY_REPLAY, Commit, Exchange, Raise, Refuse, Replay, Row, Send
from retrymw._core.policy import Mark, MarkKind
from tests.core.helpers import KINDS, PHASES, failure

IDEMPOTENT, ROLLBACK_SAFE, NEVER = (
    Mark(MarkKind.IDEMPOTENT),
    Mark(MarkKind.ROLLBACK_SAFE),
    Mark(MarkKind.NEVER_REPLAY),
)
SAFE = ("GET", "HEAD", "OPTIONS", "TRACE", "QUERY")
WRITING = ("PUT", "DELETE")
OTHER = ("POST", "PATCH", "LINK", "get")

# endpoint: replayed before any commit, after a commit was seen, when a COMMIT's answer was lost
TABLE = {
    "safe": (True, True, True),
    "put": (True, False, False),
    "post": (False, False, False),
    "rollback_safe": (True, False, False),
    "idempotent": (True, True, True),
    "never": (False, False, False),
}
COLUMNS = ("none", "seen", "lost")
WORDS = {"none": "not-replayable", "seen": "committed", "lost": "unknown"}

# Every way to be in a row: (row, method, mark, fenced)
ENDPOINTS = [
    *(("safe", method, None, False) for method in SAFE),
    *(("safe", method, ROLLBACK_SAFE, False) for method in SAFE),
    *(("put", method, None, False) for method in WRITING),
    *(("post", method, None, False) for method in OTHER),
    *(("rollback_safe", method, ROLLBACK_SAFE, False) for method in WRITING + OTHER),
    *(("idempotent", method, IDEMPOTENT, False) for method in SAFE + WRITING + OTHER),
    *(("never", method, NEVER, False) for method in SAFE + WRITING + OTHER),
    *(
        ("never", method, mark, True)
        for method in SAFE + WRITING + OTHER
        for mark in (None, ROLLBACK_SAFE, IDEMPOTENT, NEVER)
    ),
]

# Every way to be in a column, as far as what an adapter says goes: > a COMMIT was sent, + it was
# answered and done, - it was answered and not done.
SAID = {
    "none": ["", ">-", ">->-"],
    "seen": [">+", ">->+", ">+>-"],
    "lost": [">", ">+>", ">->", ">>+"],
}


def exchange(method="GET", mark=None, **rules):
    rules.setdefault("wait", tenacity.wait_fixed(0.5))
    made = Exchange(RetryPolicy(**rules), method, now=100.0)
    made.mark = mark
    return made


def say(exchange, story):
    for event in story:
        if event == ">":
            exchange.commit_sent()
        else:
            exchange.commit_answered(committed=event == "+")


def fail(exchange, failed, *, by="raising", now=101.0, **more):
    """End the attempt: the app raised, or answered 500 after a database layer saw the failure."""
    if by == "raising":
        return exchange.ended(now, failure=failed, raised=True, status=None, **more)
    exchange.doom(failed)
    return exchange.ended(now, failure=None, raised=False, status=500, **more)


def column_of(failed, said):
    """DESIGN §5's column. Only a disconnection leaves open what became of a COMMIT."""
    if failed.kind == "disconnection" and failed.phase in ("commit", "unknown"):
        return "lost"
    return said


@pytest.mark.parametrize("by", ["raising", "answering 500"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", COLUMNS)
def test_table(said, kind, phase, by):
    """G3, G4: each endpoint is replayed in exactly the columns of DESIGN's table."""
    failed = failure(kind, phase)
    column = column_of(failed, said)
    for (row, method, mark, fenced), story in product(ENDPOINTS, SAID[said]):
        made = exchange(method, mark)
        say(made, story)
        if fenced:
            made.fence("card charged")
        command = fail(made, failed, by=by)
        context = (row, method, mark, fenced, story)
        if TABLE[row][COLUMNS.index(column)]:
            assert command == Replay(0.5), context
        else:
            expected = Refuse(WORDS[column], 0.5 if column == "none" else None)
            assert command == expected, context


def test_table_is_complete():
    """The table as data has a value for each row and column, and they are DESIGN's."""
    rows = {
        Row.SAFE: "safe",
        Row.REPEATABLE: "put",
        Row.UNMARKED: "post",
        Row.ROLLBACK_SAFE: "rollback_safe",
        Row.IDEMPOTENT: "idempotent",
        Row.NEVER: "never",
    }
    columns = {Commit.NONE: "none", Commit.SEEN: "seen", Commit.UNKNOWN: "lost"}
    assert {
        rows[row]: tuple(may[commit] for commit in columns) for row, may in MAY_REPLAY.items()
    } == TABLE
    assert len(rows) == len(Row)
    assert len(columns) == len(Commit)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET", "POST"])
def test_methods_are_a_policy_field(method):
    """G3: a method left out of the policy is replayed no more than POST is by default."""
    made = exchange(method, methods=set())
    assert fail(made, failure()) == Refuse("not-replayable", 0.5)


def test_added_method_is_replayed_before_any_commit_only():
    """G4: a method that the policy adds is no safe one: it is in the row of PUT."""
    policy = {"methods": {"POST"}}
    assert fail(exchange("POST", **policy), failure()) == Replay(0.5)
    assert fail(exchange("POST", **policy), failure(phase="commit")) == Refuse("unknown", None)


def test_unanswered_commit_outweighs_an_answered_one():
    """G4: with one COMMIT answered and one lost the outcome is unknown, not committed."""
    made = exchange("PUT")
    say(made, ">+>")
    assert fail(made, failure("conflict")) == Refuse("unknown", None)


def test_answer_without_commit_does_not_hide_the_next_lost_one():
    """G4: an adapter that tells of an answer too many can't make a lost COMMIT look answered."""
    made = exchange("PUT")
    made.commit_answered(committed=False)
    made.commit_sent()
    assert fail(made, failure("conflict")) == Refuse("unknown", None)


def test_commit_lost_earlier_in_the_attempt_counts():
    """G4: a COMMIT lost before the failure that ended the attempt still makes it unknown."""
    made = exchange("PUT")
    made.doom(failure(phase="commit"))
    assert fail(made, failure(phase="connect")) == Refuse("unknown", None)


@pytest.mark.parametrize("handled", [set(KINDS), {"conflict"}])
def test_lost_commit_of_a_kind_outside_the_policy_counts(handled):
    """G4: a COMMIT lost in a disconnection stays lost where only conflicts are handled."""
    made = exchange("PUT", kinds=handled)
    made.doom(failure("conflict"))
    assert fail(made, failure(phase="commit")).outcome == "unknown"


def test_fence_holds_for_the_exchange():
    """G3: a fence that was set in attempt 2 refuses the request, whatever attempt 1 was."""
    made = exchange("GET")
    fail(made, failure())
    made.begin(102.0)
    made.fence("card charged")
    assert fail(made, failure(), now=103.0) == Refuse("not-replayable", 0.5)
    assert made.report(103.0, "/").fence == "card charged"


def test_first_fence_is_the_one_told():
    """A second fence does not change why the request must not run again."""
    made = exchange()
    made.fence("card charged")
    made.fence("mail sent")
    assert made.fenced == "card charged"


# What is not replayed.


@pytest.mark.parametrize("status", [100, 200, 304, 404, 499])
def test_doomed_answer_below_500_is_sent(status):
    """A doomed attempt that answered below 500 handled the failure: its answer is sent."""
    made = exchange()
    made.doom(failure())
    assert made.ended(101.0, failure=None, raised=False, status=status) == Send()
    assert made.failures == ()
    assert made.outcome is None


@pytest.mark.parametrize("status", [None, 500, 502, 503, 599])
def test_doomed_server_error_is_replayed(status):
    """A doomed attempt that ended without an answer below 500 is replayed (squashed exception)."""
    made = exchange()
    made.doom(failure())
    assert made.ended(101.0, failure=None, raised=False, status=status) == Replay(0.5)


@pytest.mark.parametrize(
    ("raised", "status", "expected"),
    [(False, 200, Send()), (False, 500, Send()), (True, None, Raise()), (True, 200, Raise())],
)
def test_what_is_not_ours_passes(raised, status, expected):
    """G5: with no failure of ours in it an attempt is passed on as it is, a 500 included."""
    made = exchange()
    assert made.ended(101.0, failure=None, raised=raised, status=status) == expected
    assert made.outcome is None
    assert made.failures == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["raising", "answering 500"])
def test_kinds_outside_the_policy_pass(kind, by):
    """A kind of failure that the policy does not name passes as if retrymw were not there."""
    made = exchange(kinds=set(KINDS) - {kind})
    assert fail(made, failure(kind), by=by) == (Raise() if by == "raising" else Send())
    assert made.failures == ()


def test_doom_of_a_handled_kind_counts_after_one_of_another_kind():
    """A layer that saw a kind outside the policy and then a handled one dooms the attempt."""
    made = exchange(kinds={"disconnection"})
    made.doom(failure("conflict"))
    made.doom(failure("disconnection"))
    assert made.ended(101.0, failure=None, raised=False, status=500) == Replay(0.5)


def test_raised_failure_of_an_unhandled_kind_does_not_undo_a_doom():
    """A kind outside the policy is like any exception that isn't ours: the doom decides."""
    made = exchange(kinds={"disconnection"})
    made.doom(failure("disconnection"))
    assert fail(made, failure("conflict")) == Replay(0.5)


def test_foreign_exception_of_a_doomed_attempt_is_replayed():
    """G7: an exception that isn't ours, in a doomed attempt, ends it by what doomed it."""
    made = exchange()
    cause = failure()
    made.doom(cause)
    assert made.ended(101.0, failure=None, raised=True, status=None) == Replay(0.5)
    assert made.failures == (cause,)


def test_dooms_do_not_pile_up():
    """G2: an attempt that lives long, and meets failure after failure, does not keep them all."""

    class Lost(Exception):
        pass

    made = exchange()
    alive = weakref.WeakSet()
    for _ in range(100):
        exc = Lost()
        alive.add(exc)
        made.doom(failure(exception=exc))
    del exc
    assert len(alive) <= len(KINDS)


@pytest.mark.parametrize("raised", [False, True])
def test_sent_response_is_never_replayed(raised):
    """G2: once the response was released nothing is replayed or refused; an exception passes."""
    made = exchange()
    made.doom(failure())
    made.seal("response")
    command = made.ended(101.0, failure=None, raised=raised, status=500)
    assert command == (Raise() if raised else Send())
    assert made.outcome == "sealed"


def test_failure_after_a_complete_answer_is_told_and_raised():
    """G7: a background task that fails after the response is not replayed, and not forgotten."""
    made = exchange()
    made.seal("response")
    failed = failure()
    assert made.ended(101.0, failure=failed, raised=True, status=200) == Raise()
    assert made.outcome == "sealed"
    assert made.failures == (failed,)


def test_dropped_recording_refuses():
    """G2: a request whose body was too large to record is refused, and may come back."""
    made = exchange()
    made.seal("recording")
    assert fail(made, failure()) == Refuse("sealed", 0.5)


def test_released_response_outweighs_a_dropped_recording():
    """A 503 can't follow a response that the client has a part of, in whichever order they came."""
    for order in (("recording", "response"), ("response", "recording")):
        made = exchange()
        for by in order:
            made.seal(by)
        assert fail(made, failure()) == Raise()


def test_runs_at_most_once_and_max_replays_times():
    """G2: with max_replays=2 the third attempt is the last, and the refusal says exhausted."""
    made = exchange(max_replays=2)
    for number in (1, 2):
        assert made.number == number
        assert fail(made, failure()) == Replay(0.5)
        assert made.begin(102.0) is None
    assert fail(made, failure()) == Refuse("exhausted", 0.5)
    assert made.report(103.0, "/").attempts == 3


def test_no_replays_at_all():
    """G2: max_replays=0 runs the app once and refuses."""
    assert fail(exchange(max_replays=0), failure()) == Refuse("exhausted", 0.5)


@pytest.mark.parametrize(
    ("now", "expected"),
    [(104.9, Replay(0.5)), (105.0, Refuse("deadline", 0.5)), (200.0, Refuse("deadline", 0.5))],
)
def test_failure_at_the_deadline_is_refused(now, expected):
    """G2: nothing is replayed past the deadline; before it, others may call earlier."""
    assert fail(exchange(deadline=5), failure(), now=now) == expected


@pytest.mark.parametrize(("now", "begins"), [(104.9, True), (105.0, False), (150.0, False)])
def test_no_attempt_begins_at_or_past_the_deadline(now, begins):
    """G2: rolling back may take longer than was thought: the deadline is looked at again."""
    made = exchange(deadline=5)
    assert fail(made, failure()) == Replay(0.5)
    assert made.begin(now) == (None if begins else Refuse("deadline", 0.5))
    assert made.number == 1 + begins


@pytest.mark.parametrize("outcome", ["deadline", "overload"])
def test_giving_up_after_an_attempt(outcome):
    """G7, G10: who waits in vain for a replay is refused, with the failures that it met."""
    made = exchange()
    failed = failure()
    fail(made, failed)
    assert made.give_up(outcome, failure("conflict")) == Refuse(outcome, 0.5)
    report = made.report(105.0, "/")
    assert (report.attempts, report.failures, report.outcome) == (1, (failed,), outcome)


def test_giving_up_before_the_first_attempt():
    """G7: who waits in vain for its turn has made no attempt; what it waited for is told."""
    made = exchange()
    awaited = failure()
    assert made.give_up("overload", awaited) == Refuse("overload", 0.5)
    report = made.report(105.0, "/")
    assert (report.attempts, report.failures, report.outcome) == (0, (awaited,), "overload")


def test_giving_up_asks_for_the_wait_of_the_replay_that_did_not_come():
    """G10: what Retry-After says is the wait that would have been next."""
    made = exchange(wait=tenacity.wait_incrementing(start=0.1, increment=0.1))
    fail(made, failure())
    made.begin(102.0)
    fail(made, failure())
    assert made.give_up("deadline", None).retry_after == pytest.approx(0.2)
    early = exchange(wait=tenacity.wait_incrementing(start=0.1, increment=0.1))
    assert early.give_up("deadline", failure()).retry_after == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"max_replays": 0}, Refuse("exhausted", 0.5)),
        ({"deadline": 1.0}, Refuse("deadline", 0.5)),
        ({"wait": tenacity.wait_fixed(0.25)}, Replay(0.25)),
        ({"kinds": {"conflict"}}, Raise()),
    ],
)
def test_mark_overrides_the_policy(overrides, expected):
    """A mark's overrides take the place of the policy's fields, for its exchange."""
    made = exchange("POST", Mark(MarkKind.IDEMPOTENT, overrides))
    assert fail(made, failure()) == expected


def test_wait_gets_longer_with_each_replay():
    """The wait strategy is asked for each replay in turn, with the number of that replay."""
    made = exchange(wait=tenacity.wait_incrementing(start=0.1, increment=0.1))
    waits = []
    for _ in range(3):
        waits.append(fail(made, failure()).after)
        made.begin(102.0)
    assert waits == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("overrides", [{}, {"max_replays": 3}])
def test_wait_is_asked_once_for_each_replay(overrides):
    """A strategy may keep count of its calls: it is called for replays, and for nothing else."""
    waits = iter([0.1, 0.2, 0.3, 0.4])
    made = exchange(mark=Mark(MarkKind.IDEMPOTENT, overrides), wait=lambda state: next(waits))
    for expected in (0.1, 0.2, 0.3):
        assert fail(made, failure()) == Replay(expected)
        made.begin(102.0)


def test_wait_that_raises_does_not_lose_the_cause():
    """G7: a broken wait strategy is met at the worst moment, and must not hide what failed."""
    cause = failure()

    def wait(state):
        if state.outcome.exception() is cause.exception:
            raise ZeroDivisionError
        return 0.1

    made = exchange(wait=wait)
    assert isinstance(fail(made, cause), Replay | Refuse)
    assert made.failures == (cause,)


# What is told.


@pytest.mark.parametrize("status", [200, 404])
def test_recovered(status):
    """An exchange that answered after a replay has recovered."""
    made = exchange()
    fail(made, failure())
    made.begin(102.0)
    assert made.ended(102.1, failure=None, raised=False, status=status) == Send()
    report = made.report(102.5, "/orders")
    assert (report.outcome, report.attempts, report.elapsed) == ("recovered", 2, 2.5)


def test_recovered_is_known_when_the_replay_starts_to_answer():
    """The headers of a streamed replay tell the outcome before the app has returned."""
    made = exchange()
    fail(made, failure())
    made.begin(102.0)
    made.seal("response")
    assert made.report(102.0, "/").outcome == "recovered"


def test_first_attempt_that_answers_has_no_outcome():
    """G5: nothing failed, so there is nothing to tell."""
    made = exchange()
    made.seal("response")
    assert made.ended(101.0, failure=None, raised=False, status=200) == Send()
    assert made.outcome is None


def test_outcome_is_open_while_the_exchange_goes_on():
    """A report between two attempts has no outcome, and says when the next one is due."""
    made = exchange("PUT")
    failed = failure()
    command = fail(made, failed)
    report = made.report(101.5, "/orders", command.after)
    assert (report.method, report.path, report.attempts) == ("PUT", "/orders", 1)
    assert (report.outcome, report.next_in, report.failures) == (None, 0.5, (failed,))


def test_abandoned():
    """G6: an exchange whose client has gone ends without an answer."""
    made = exchange()
    fail(made, failure())
    made.abandon()
    assert made.report(102.0, "/").outcome == "abandoned"


def test_is_last_attempt_by_number():
    """No replay follows attempt 1 + max_replays."""
    made = exchange(max_replays=1)
    assert made.may_replay_again
    fail(made, failure())
    made.begin(102.0)
    assert not made.may_replay_again


@pytest.mark.parametrize("why", ["fence", "sealed", "method", "mark"])
def test_is_last_attempt_by_rule(why):
    """No replay follows what is fenced, sealed, an unmarked POST, or marked @never_replay."""
    made = exchange("POST" if why == "method" else "GET", NEVER if why == "mark" else None)
    if why == "fence":
        made.fence("card charged")
    if why == "sealed":
        made.seal("recording")
    assert not made.may_replay_again


def test_is_last_attempt_by_commit():
    """After a commit was seen, no replay follows an attempt of an unmarked PUT."""
    made = exchange("PUT")
    say(made, ">+")
    assert not made.may_replay_again


@given(
    method=st.sampled_from(SAFE + WRITING + OTHER),
    mark=st.sampled_from([None, IDEMPOTENT, ROLLBACK_SAFE, NEVER]),
    said=st.sampled_from([story for stories in SAID.values() for story in stories]),
    failed=st.builds(failure, st.sampled_from(KINDS), st.sampled_from(PHASES)),
    fenced=st.booleans(),
)
def test_last_attempt_is_not_followed_by_a_replay(method, mark, said, failed, fenced):
    """Where an attempt was said to be the last, no failure leads to a replay."""
    made = exchange(method, mark)
    say(made, said)
    if fenced:
        made.fence("card charged")
    was_last = not made.may_replay_again
    command = fail(made, failed)
    assert not (was_last and isinstance(command, Replay))
