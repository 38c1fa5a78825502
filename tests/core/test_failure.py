"""A failure: kind, phase, code, and what it says about a COMMIT."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

from tests.core.helpers import KINDS, PHASES, failure

LOST = {("disconnection", "commit"), ("disconnection", "unknown")}


@pytest.mark.parametrize(("kind", "phase"), [*product(KINDS, PHASES)])
def test_leaves_commit_unknown(kind, phase):
    """G4: only a connection lost in the COMMIT, or maybe in it, leaves open what became of it."""
    assert failure(kind, phase).leaves_commit_unknown == ((kind, phase) in LOST)


def test_frozen():
    """A failure is a fact."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        failure().kind = "conflict"


def test_has_the_original_exception():
    """G7: the exception is the very object that was raised."""
    exc = ValueError("lost")
    assert failure(exception=exc).exception is exc
