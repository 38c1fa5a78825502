"""What the documentation says of the code is what the code says of itself."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

import retrymw
from retrymw._core.exchange import MAY_REPLAY, WITHOUT_RETRY_AFTER, Commit, Outcome
from retrymw._core.policy import OVERRIDABLE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts),
]


def table(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose header begins with ``first``, without its ruler."""
    lines = iter((DOCS / page).read_text().splitlines())
    rows = []
    for line in lines:
        if rows or line.startswith(f"| {first} |"):
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows, f"{page} has no such table"
    return [rows[0], *rows[2:]]


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def test_decision_table():
    """G3, G4: the page shows the table that the code reads."""
    told = table("reference/decision-table.md", "endpoint")
    assert told[0] == ["endpoint", *(commit.value for commit in Commit)]
    assert told[1:] == [
        [row.value, *("replay" if cells[commit] else "no" for commit in Commit)]
        for row, cells in MAY_REPLAY.items()
    ]


def test_every_field_of_the_policy_is_described():
    fields = dataclasses.fields(retrymw.RetryPolicy)
    page = (DOCS / "reference/policy.md").read_text()
    assert re.findall(r"^## `(\w+)`$", page, re.MULTILINE) == [field.name for field in fields]
    rows = table("reference/policy.md", "field")[1:]
    assert [re.findall(r"`(\w+)`", row[0]) for row in rows] == [[field.name] for field in fields]
    assert {field.name for field, row in zip(fields, rows, strict=True) if row[2] == "yes"} == (
        OVERRIDABLE
    )


def test_every_outcome_is_described():
    rows = table("reference/headers.md", "value")[1:]
    told = {row[0].strip("`"): row[3] for row in rows}
    assert set(told) == set(get_args(Outcome)) - {"abandoned"}
    assert {outcome for outcome, after in told.items() if after == "no"} == WITHOUT_RETRY_AFTER


def test_every_guarantee_is_listed():
    page = (DOCS / "explanation/guarantees.md").read_text()
    headings = re.findall(r"^## (G\d+ .+)$", page, re.MULTILINE)
    assert [heading.split()[0] for heading in headings] == [f"G{n}" for n in range(1, 11)]
    linked = re.findall(r"guarantees\.md#(g\d+[\w-]+)", (ROOT / "README.md").read_text())
    assert set(linked) == {slug(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    for name in re.findall(r"`((?:tests|docs|retrymw|example_app)/[\w/.-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_every_public_name_is_described():
    page = (DOCS / "reference/api.md").read_text()
    assert [name for name in retrymw.__all__ if f"retrymw.{name}" not in page] == []
