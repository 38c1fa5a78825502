"""retrymw's own exceptions, as an app raises them."""

from __future__ import annotations

import copy
import pickle

import pytest

from retrymw import DisconnectionError, RetryableError, TooManyConnections, TransactionConflict

EXCEPTIONS = [
    (DisconnectionError, "disconnection", "execute"),
    (TooManyConnections, "too-many-connections", "connect"),
    (TransactionConflict, "conflict", "execute"),
]


@pytest.mark.parametrize(("cls", "kind", "phase"), EXCEPTIONS)
def test_kind_and_phase(cls, kind, phase):
    """Each exception stands for one kind, and has the phase it mostly strikes in."""
    exc = cls("lost", 2013)
    assert (exc.kind, exc.phase, exc.args) == (kind, phase, ("lost", 2013))
    assert isinstance(exc, RetryableError)
    assert str(cls("lost")) == "lost"


@pytest.mark.parametrize("phase", ["connect", "execute", "commit", "unknown"])
def test_phase_is_given(phase):
    """Who raises it says where it struck; that of other instances stays."""
    assert DisconnectionError("lost", phase=phase).phase == phase
    assert DisconnectionError("lost").phase == "execute"


@pytest.mark.parametrize("phase", ["comit", "COMMIT", "", 1])
def test_wrong_phase(phase):
    """G4: a misspelt "commit" raises, and does not become a phase that leaves no doubt."""
    with pytest.raises(ValueError, match="phase"):
        DisconnectionError("lost", phase=phase)


@pytest.mark.parametrize("clone", [copy.copy, lambda exc: pickle.loads(pickle.dumps(exc))])  # noqa: S301  # our own
def test_can_be_sent_elsewhere(clone):
    """Worker processes hand exceptions over by pickling them: the phase survives that."""
    exc = clone(TransactionConflict("deadlock", phase="commit"))
    assert (type(exc), exc.args, exc.phase) == (TransactionConflict, ("deadlock",), "commit")


def test_ordinary_exceptions():
    """G6: they are Exceptions: who catches those catches these, and no cancellation is one."""
    assert issubclass(RetryableError, Exception)
