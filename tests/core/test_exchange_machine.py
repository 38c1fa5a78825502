"""All sequences of what can happen in an exchange, against a model written from DESIGN."""

from __future__ import annotations

import tenacity
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retrymw import RetryPolicy
from retrymw._core.exchange import Exchange, Raise, Refuse, Replay, Send
from retrymw._core.failure import Failure
from retrymw._core.policy import Mark, MarkKind
from tests.core.helpers import KINDS, OUTCOMES, PHASES, failure

SAFE = {"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"}
METHODS = ["GET", "QUERY", "PUT", "POST"]
DEFAULTS = {
    "max_replays": 5,
    "deadline": 10.0,
    "wait": tenacity.wait_fixed(0.25),
    "kinds": set(KINDS),
    "methods": SAFE | {"PUT", "DELETE"},
}

# Most attempts fail and most requests may be replayed, or few exchanges would get beyond the first.
rarely = st.sampled_from([False] * 11 + [True])
refusals = st.sampled_from([None] * 12 + ["deadline", "overload"])  # of the waiting room
# Quarters are exact, so that limits are met and not just missed.
seconds = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1.75, 4.0])
failures = st.builds(failure, st.sampled_from(KINDS), st.sampled_from(PHASES))
overrides = st.fixed_dictionaries(
    {},
    optional={
        "max_replays": st.sampled_from([2, 3, 1, 0]),
        "deadline": st.sampled_from([10.0, 5.0, 2.0, 1.0]),
        "wait": st.sampled_from([0.25, 0.5, 2.0]).map(tenacity.wait_fixed),
        "kinds": st.sampled_from([set(KINDS)] * 4 + [{kind} for kind in KINDS] + [set()]),
    },
)
rules = st.builds(
    lambda changes, methods: {**changes, "methods": methods},
    overrides,
    st.sampled_from([DEFAULTS["methods"]] * 5 + [SAFE | {"POST"}, {"PUT"}]),
)
marks = st.none() | st.builds(
    lambda kind, changes: Mark(kind, {} if kind is MarkKind.NEVER_REPLAY else changes),
    st.sampled_from([MarkKind.IDEMPOTENT] * 3 + [MarkKind.ROLLBACK_SAFE] * 3 + [*MarkKind]),
    overrides,
)
events = st.lists(
    st.sampled_from(
        ["send commit", "answer commit", "refuse commit", "let time pass"] * 4
        + ["set fence", "release response", "drop recording"]
    )
    | failures,
    max_size=4,
)
RAISED, FOREIGN, ANSWERED = "raised a failure", "raised something else", "answered"
endings = st.sampled_from([RAISED] * 5 + [ANSWERED] * 2 + [FOREIGN])
statuses = st.sampled_from([500, 503, None, 200, 404])


class Exchanges(RuleBasedStateMachine):
    """One exchange after another. The model keeps what DESIGN speaks of, and no more."""

    def __init__(self):
        super().__init__()
        self.state = "over"

    @initialize(method=st.sampled_from(METHODS), rules=rules, now=seconds)
    def first(self, method, rules, now):
        self.arrive(method, rules, now)

    @precondition(lambda self: self.state == "over")
    @rule(method=st.sampled_from(METHODS), rules=rules, now=seconds)
    def next(self, method, rules, now):
        self.arrive(method, rules, now)

    def arrive(self, method, rules, now):
        self.rules = {**DEFAULTS, **rules}
        self.exchange = Exchange(RetryPolicy(**self.rules), method, now)
        self.method, self.now, self.arrived = method, now, now
        self.mark = None
        self.fenced = self.response_released = self.recording_dropped = False
        self.runs = 1
        self.failed = []
        self.start_attempt()

    def start_attempt(self):
        self.state = "running"
        self.doomed = []
        self.commits = []  # of each COMMIT: None while unanswered, else whether it was done

    def rule_of(self, name):
        """The policy's, or the mark's, who goes before it."""
        return (self.mark.overrides if self.mark is not None else {}).get(name, self.rules[name])

    # An attempt.

    @precondition(lambda self: self.state == "running")
    @rule(
        events=events,
        ending=endings,
        failed=failures,
        status=statuses,
        mark=marks,
        took=seconds,
    )
    def attempt(self, events, ending, failed, status, mark, took):
        for event in events:
            self.happen(event)
        self.now += took
        if self.mark is None:
            self.mark = self.exchange.mark = mark
        failed = failed if ending == RAISED else None
        raised = ending != ANSWERED
        command = self.exchange.ended(self.now, failure=failed, raised=raised, status=status)
        self.check(command, failed, raised, status)

    def happen(self, event):
        exchange = self.exchange
        if event == "send commit":
            exchange.commit_sent()
            self.commits.append(None)
        elif event in ("answer commit", "refuse commit") and None in self.commits:
            committed = event == "answer commit"
            exchange.commit_answered(committed=committed)
            self.commits[self.commits.index(None)] = committed
        elif event == "let time pass":
            self.now += 0.25
        elif event == "set fence":
            exchange.fence("card charged")
            self.fenced = True
        elif event == "release response":
            exchange.seal("response")
            self.response_released = True
        elif event == "drop recording":
            exchange.seal("recording")
            self.recording_dropped = True
        elif isinstance(event, Failure):  # that a database layer saw
            exchange.doom(event)
            self.doomed.append(event)

    # What must become of it.

    def check(self, command, failed, raised, status):
        passed = Raise() if raised else Send()
        reason = self.reason(failed)
        handled = not raised and status is not None and status < 500
        if reason is None or handled:
            assert command == passed, "G5: it is not ours, or the app's own business"
            self.finish("recovered" if self.failed else None)
            return
        self.failed.append(reason)
        if self.response_released:
            assert command == passed, "G2: nothing can follow a released response"
            self.finish("sealed")
            return
        allowed = self.allowed(failed)
        if isinstance(command, Replay):
            assert allowed == {"replay"}
            assert command.after == self.rule_of("wait")(None)
            assert self.exchange.outcome is None
            self.state = "waiting"
        else:
            assert isinstance(command, Refuse)
            assert command.outcome in allowed
            without = command.outcome in ("committed", "unknown")
            assert (command.retry_after is None) == without, "G4, G10"
            self.finish(command.outcome)

    def reason(self, failed):
        """The failure that ended the attempt: what was raised, or else what doomed it.

        One of a kind that the policy does not handle is none of ours.
        """
        kinds = self.rule_of("kinds")
        return next((seen for seen in self.seen(failed) if seen.kind in kinds), None)

    def seen(self, failed):
        return self.doomed if failed is None else [failed, *self.doomed]

    def allowed(self, failed):
        """What DESIGN allows to become of a failed attempt: the words of a refusal, or a replay."""
        column = self.column(failed)
        if not self.may_replay(column):
            return {{"none": "not-replayable", "seen": "committed", "lost": "unknown"}[column]}
        words = set()
        if self.recording_dropped:
            words.add("sealed")
        if self.runs > self.rule_of("max_replays"):
            words.add("exhausted")
        if self.now >= self.arrived + self.rule_of("deadline"):
            words.add("deadline")
        return words or {"replay"}

    def column(self, failed):
        lost = any(
            seen.kind == "disconnection" and seen.phase in ("commit", "unknown")
            for seen in self.seen(failed)
        )
        if lost or None in self.commits:
            return "lost"
        return "seen" if True in self.commits else "none"

    def may_replay(self, column):
        """DESIGN §5."""
        mark = self.mark.kind if self.mark is not None else None
        if self.fenced or mark is MarkKind.NEVER_REPLAY:
            return False
        listed = self.method in self.rules["methods"]
        if mark is MarkKind.IDEMPOTENT or (listed and self.method in SAFE):
            return True
        return column == "none" and (listed or mark is MarkKind.ROLLBACK_SAFE)

    def finish(self, outcome):
        assert self.exchange.outcome == outcome
        self.state = "over"

    # Between attempts.

    @precondition(lambda self: self.state == "over")
    @rule(waited=seconds, outcome=st.sampled_from(["deadline", "overload"]), awaited=failures)
    def wait_for_the_first_attempt_in_vain(self, waited, outcome, awaited):
        self.arrive("GET", DEFAULTS, self.now)
        self.now += waited
        self.runs, self.failed = 0, [awaited]
        self.give_up(outcome, awaited)

    def give_up(self, outcome, awaited):
        refusal = self.exchange.give_up(outcome, awaited)
        assert refusal == Refuse(outcome, self.rule_of("wait")(None)), "G10"
        self.finish(outcome)

    @precondition(lambda self: self.state == "waiting")
    @rule(
        waited=seconds, client_leaves=rarely, late_fence=rarely, in_vain=refusals, awaited=failures
    )
    def wait(self, waited, client_leaves, late_fence, in_vain, awaited):
        self.now += waited
        if in_vain is not None:
            self.give_up(in_vain, awaited)
            return
        if late_fence:  # by a thread that the attempt has left behind
            self.exchange.fence("card charged")
            self.fenced = True
        if client_leaves:
            self.exchange.abandon()
            self.finish("abandoned")
            return
        refusal = self.exchange.begin(self.now)
        allowed = {"not-replayable"} if self.fenced else set()
        if self.now >= self.arrived + self.rule_of("deadline"):
            allowed.add("deadline")
        if allowed:
            assert refusal is not None, "G2, G3: none begins past the deadline or a fence"
            assert refusal.outcome in allowed
            assert refusal.retry_after is not None, "G10"
            self.finish(refusal.outcome)
            return
        assert refusal is None
        assert not self.response_released, "G2: what is sealed is not run again"
        assert not self.recording_dropped, "G2: what is sealed is not run again"
        self.runs += 1
        assert self.runs <= 1 + self.rule_of("max_replays"), "G2"
        self.start_attempt()

    # Always.

    @invariant()
    def the_report_is_true(self):
        """G7: it has every failure, and counts every run."""
        report = self.exchange.report(self.now, "/")
        assert report.attempts == self.runs
        assert list(report.failures) == self.failed
        assert report.elapsed == self.now - self.arrived
        assert report.outcome in (*OUTCOMES, "abandoned", None)


Exchanges.TestCase.settings = settings(max_examples=200, stateful_step_count=30)
TestExchanges = Exchanges.TestCase
