"""What the codes mean, and that this is what classify and the exchange make of them."""

import sys

import pymysql
import pytest
from click.testing import CliRunner

from retrymw._core.exchange import MAY_REPLAY, Commit, Row
from retrymw.classify import _mysql_codes, _postgresql_texts, classify, sqlite
from retrymw.commands._meanings import _TEXTS, BY_TEXT, MEANINGS, find
from retrymw.commands.explain import explain

CODES = [*_mysql_codes.CODES, *_postgresql_texts.SQLSTATES, *sqlite.CODES]
ROWS = {
    "GET, HEAD": Row.SAFE,
    "PUT, DELETE": Row.REPEATABLE,
    "POST, PATCH": Row.UNMARKED,
    "@rollback_safe": Row.ROLLBACK_SAFE,
    "@idempotent": Row.IDEMPOTENT,
    "@never_replay": Row.NEVER,
}


def said_of(code):
    result = CliRunner().invoke(explain, [str(code)])
    assert result.exit_code == 0
    return result.output


def answers(output, row):
    """The cells of one kind of endpoint, as booleans."""
    [line] = [line for line in output.splitlines() if line.startswith(row)]
    return [cell.strip() == "yes" for cell in line.split("  ")[1:] if cell.strip()]


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(code):
    """Each code of the tables that classify reads has a text, and no other has one."""
    output = said_of(code)
    [meaning] = find(str(code))
    assert meaning.name in output
    assert " ".join(meaning.text.split()) in " ".join(output.split())
    assert f"kind:  {meaning.kind}" in output
    assert set(_TEXTS) == set(CODES)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("row", ROWS)
def test_what_is_replayed_is_in_the_decision_table(code, row):
    """G3, G4: the answers are those of the exchange's own table, column by column."""
    [meaning] = find(str(code))
    if meaning.kind == "disconnection" and meaning.phase is None:
        columns = [Commit.NONE, Commit.UNKNOWN, Commit.SEEN]
    elif meaning.phase == "commit":
        columns = [Commit.UNKNOWN]
    else:
        columns = [Commit.NONE, Commit.SEEN]
    wanted = [MAY_REPLAY[ROWS[row]][column] for column in columns]
    assert answers(said_of(code), row) == wanted


@pytest.mark.parametrize("code", _mysql_codes.CODES)
def test_kind_is_what_classify_says(code):
    """What is said of a number is what classify makes of an exception that carries it."""
    failure = classify(pymysql.OperationalError(code, "the 'max_user_connections' resource"))
    [meaning] = find(str(code))
    assert failure is not None
    assert failure.kind == meaning.kind
    assert meaning.phase in (None, failure.phase)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("er_con_count_error", "ER_CON_COUNT_ERROR"),
        ("too_many_connections", "too_many_connections"),
        ("TOO_MANY_CONNECTIONS", "too_many_connections"),
        ("57p01", "admin_shutdown"),
        (" 2013 ", "CR_SERVER_LOST"),
    ],
)
def test_names_and_spellings(spelled, name):
    """A name does as well as a number, in capitals or not."""
    assert name in said_of(spelled)


def test_names_are_unique():
    """One name, one code: an answer is never about two of them."""
    names = [meaning.name for meaning in MEANINGS]
    assert len(set(names)) == len(names) == len({str(meaning.code) for meaning in MEANINGS})


def test_where_it_struck_is_told():
    """2013 is replayed after a statement, and not after a COMMIT; it says so."""
    output = said_of(2013)
    assert "while connecting or in a statement" in output
    assert "in the COMMIT or not known where" in output
    assert "unknown: the COMMIT may have been carried out" in output


@pytest.mark.parametrize("code", ["1045", "1064", "23505", "nonsense"])
def test_unknown_codes(code):
    """What retrymw does not know is not replayed; the status is 1."""
    result = CliRunner().invoke(explain, [code])
    assert result.exit_code == 1
    assert f"{code} is none of the {len(CODES)} codes" in result.output
    assert "not replayed" in result.output


@pytest.mark.parametrize("code", BY_TEXT)
def test_codes_that_depend_on_the_text(code):
    """A code that means one thing or the other is neither called known nor unknown."""
    assert not find(code)
    assert said_of(code.lower()).startswith(code)


def test_it_asks_no_database(monkeypatch):
    """It works where no driver and no SQLAlchemy is installed."""
    for module in ("sqlalchemy", "pymysql", "psycopg"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in [name for name in sys.modules if name.startswith("retrymw.commands")]:
        monkeypatch.delitem(sys.modules, module)
    from retrymw.commands.explain import explain as fresh

    assert CliRunner().invoke(fresh, ["1040"]).exit_code == 0
