"""The harness of `python -m benchmarks stress`: it runs, and its figures and tables are right."""

from __future__ import annotations

import math

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.stress import rows
from benchmarks.stress.commits import account
from benchmarks.stress.figures import latencies, percentile, share, strange, throughput
from benchmarks.stress.load import Sample
from benchmarks.stress.measure import measure
from benchmarks.stress.report import render, table
from benchmarks.stress.results import Aim, Cell, Column, Scenario, compare, rounds_of
from benchmarks.stress.scenarios import SCENARIOS


def sample(number=0, *, begun=0.0, over=0.1, status=200, outcome=""):
    return Sample(begun, over, status, outcome, number)


def scenario(*, aims=(), columns=()):
    def play(stage, row):
        raise NotImplementedError

    those = (rows.BARE, rows.BLIND, rows.IDEAL, rows.RETRYMW)
    return Scenario("shortage", "Shortage", "Too few.", those, columns, aims, play)


def cell(row, throughput, number=1, **metrics):
    return Cell("shortage", row.name, number, {"throughput": throughput, **metrics})


@pytest.mark.timeout(120)
def test_a_shortage_is_measured():
    """A pool of the right size is refused nothing and answers all; the bare app is refused."""
    those = {rows.BARE.name, rows.IDEAL.name}
    cells = measure([SCENARIOS["shortage"]], those, rounds=1, pace=0.2)
    bare, ideal = (item.metrics for item in cells)
    assert [item.row for item in cells] == [rows.BARE.name, rows.IDEAL.name]
    assert bare["refused"] > 0
    assert bare["success"] < 100
    assert (ideal["refused"], ideal["success"], ideal["ratio"]) == (0, 100, 1)
    assert ideal["p50"] <= ideal["p95"] <= ideal["p99"]


@pytest.mark.timeout(120)
def test_lost_commits_are_measured():
    """retrymw repeats no COMMIT whose answer was lost (G4); a loop does, and that is counted."""
    those = {rows.RETRYMW.name, rows.BLIND.name}
    cells = measure([SCENARIOS["commit"]], those, rounds=1, pace=0.5)
    found = {item.row: item.metrics for item in cells}
    ours, blind = found[rows.RETRYMW.name], found[rows.BLIND.name]
    assert ours["lost"] == ours["unknown"] > 0
    assert (ours["duplicates"], ours["missing"], ours["false"]) == (0, 0, 0)
    assert blind["duplicates"] == blind["lost"] > 0


def test_lost_commits_are_accounted_for():
    """Answers and stored orders are compared one by one."""
    samples = [
        sample(1),
        sample(2),  # stored twice
        sample(3),  # not stored
        sample(4, status=503, outcome="unknown"),  # stored: it said that this may be
        sample(5, status=503, outcome="unknown"),
        sample(6, status=503, outcome="exhausted"),  # stored
        sample(7, status=503),
        sample(8, status=0, outcome="TimeoutError"),
    ]
    found = account(samples, [1, 2, 2, 4, 6], 3)
    assert found == {
        "requests": 8,
        "lost": 3,
        "acknowledged": 3,
        "unknown": 2,
        "strange": 1,
        "duplicates": 1,
        "missing": 1,
        "false": 1,
        "silent": 1,
    }


def test_only_answers_200_count():
    """Shares are of all requests; rates and percentiles of those answered 200."""
    good = [sample(over=(number + 1) / 1000) for number in range(101)]
    bad = [sample(status=503, over=9.0), sample(status=0, over=9.0)]
    assert share([*good[:3], bad[0]]) == 75
    assert share([]) is None
    assert strange(good + bad) == 1
    assert throughput([sample(over=0.5), sample(over=2.0), *bad], 0.0, 2.0) == 0.5
    assert percentile(good + bad, 50) == pytest.approx(51)
    assert percentile(good[:1], 50) is None
    figures = latencies(good + bad)
    assert figures["spread"] == pytest.approx(100 / 51)
    assert figures["p99"] == pytest.approx(100)


def test_rows_are_compared_within_their_round():
    """The ratio is to the ideal pool of the same round, the lead over the best competitor."""
    cells = [
        cell(rows.IDEAL, 200.0, success=100.0),
        cell(rows.BLIND, 150.0, success=100.0),
        cell(rows.RETRYMW, 180.0, success=100.0),
        cell(rows.IDEAL, 100.0, 2, success=100.0),
        cell(rows.BLIND, 90.0, 2, success=50.0),
        cell(rows.RETRYMW, 90.0, 2, success=100.0),
    ]
    compare(cells)
    ours = [item.metrics for item in cells if item.row == rows.RETRYMW.name]
    assert [item["ratio"] for item in ours] == [0.9, 0.9]
    assert [item["lead"] for item in ours] == [pytest.approx(1.2), pytest.approx(2.0)]
    assert "lead" not in cells[0].metrics


def test_the_median_of_the_rounds_counts():
    """One bad round changes the extremes, not the median."""
    cells = [cell(rows.BARE, value, number) for number, value in enumerate((1.0, 9.0, 2.0), 1)]
    spread = rounds_of(cells, "shortage", rows.BARE.name, "throughput")
    assert (spread.median, spread.low, spread.high) == (2, 1, 9)
    assert rounds_of(cells, "shortage", rows.BARE.name, "p50") is None


@pytest.mark.parametrize(
    ("aim", "value", "met"),
    [
        ({"least": 0.95}, 0.946, True),  # as it is shown
        ({"least": 0.95}, 0.944, False),
        ({"most": 0.1}, 0.104, True),
        ({"most": 0.1}, 0.11, False),
        ({"least": 0, "most": 0}, -1, False),
        ({"least": 100, "digits": 1}, 99.9, False),
        ({"most": 1}, math.inf, False),
    ],
)
def test_aims(aim, value, met):
    """An aim is met by the figure that the page shows."""
    assert Aim("it", rows.RETRYMW, "success", **aim).met(value) is met


def test_a_table_has_the_rows_that_were_measured():
    """Medians; the extremes where rounds differ by more than a fifth; a dash for no figure."""
    columns = (Column("success", "answered 200", "{:.1f} %"), Column("p50", "p50 ms"))
    cells = [
        cell(rows.RETRYMW, 1.0, 1, success=100.0),
        cell(rows.BARE, 1.0, 1, success=30.0, p50=10.0),
        cell(rows.BARE, 1.0, 2, success=50.0, p50=10.4),
    ]
    assert table(scenario(columns=columns), cells) == (
        "| | answered 200 | p50 ms |\n"
        "|---|---:|---:|\n"
        "| bare | 40.0 % (30.0 to 50.0) | 10 |\n"
        "| retrymw | 100.0 % | - |\n"
    )


def test_the_page():
    """The page names machine, rows and aims, and says of each aim whether it was met."""
    aims = (
        Aim("fast", rows.RETRYMW, "ratio", least=0.95),
        Aim("sure", rows.RETRYMW, "success", least=100, digits=1),
        Aim("small", rows.RETRYMW, "each", most=11),
    )
    cells = [cell(rows.IDEAL, 100.0), cell(rows.RETRYMW, 96.0, success=99.0)]
    compare(cells)
    told = {"date": "2026-11-20", "machine": "a small one", "Python": "3.13", "MariaDB": "11"}
    page = render([scenario(aims=aims)], cells, told | {"stamina": "26.1"})
    assert page.startswith("# Benchmarks\n")
    assert "- machine: a small one\n" in page
    assert "stamina 26.1" in page
    assert "| fast | 0.96 | met |" in page
    assert "| sure | 99.0 | **missed** |" in page
    assert "| small | - | not measured |" in page
    assert f"- *ideal pool*: {rows.IDEAL.sentence}." in page
    assert "*blind*:" not in page


def test_rows_are_chosen_with_their_variants():
    """`--rows retrymw` means all of retrymw's; a name that does not exist is told (and others)."""
    assert rows.named(()) == frozenset(rows.BY_NAME)
    assert rows.named(("semaphore",)) == {"semaphore", "semaphore, 2 workers"}
    result = CliRunner().invoke(main, ["stress", "--rows", "nobody"])
    assert result.exit_code == 2
    assert "--rows has 'nobody'; allowed: bare, tenacity" in result.output


def test_every_row_is_in_a_scenario():
    """No row is described and never measured, and the names of a table are different."""
    used = [row.name for scenario in SCENARIOS.values() for row in scenario.rows]
    assert set(used) == set(rows.BY_NAME)
    for each in SCENARIOS.values():
        names = [row.name for row in each.rows]
        assert len(names) == len(set(names))


def test_all_benchmarks_are_offered():
    """`python -m benchmarks` has them all."""
    assert set(main.commands) == {"stress", "overhead", "bodies", "scripts"}
