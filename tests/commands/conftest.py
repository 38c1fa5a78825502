"""Drivers leave it to the garbage collector to close the sockets of those who did not get in."""

import gc
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
            )


@pytest.fixture(scope="module", autouse=True)
def _collect():
    """Nothing of it is left for the tests of others."""
    yield
    gc.collect()
