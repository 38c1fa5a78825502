"""The report that this began with: a load test holds all connections, and services fail."""

import pytest

from benchmarks.scripts import SCRIPTS, play


@pytest.mark.timeout(180)
def test_scripts_get_into_a_full_server():
    """200 clients of mariadb-slap fill the server: all scripts get in in the end, and write."""
    result = play(patient=True)
    assert result.finished == SCRIPTS
