"""Dead letters get another chance: once, in the source's own format, and only where the log delivers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

STRICT, LAX = '"amount": float', '"amount": str'
CSV = 'path="data/*.csv"'


def source(project: Any, amount: str, path: str = 'path="data/*.jsonl"') -> None:
    project.write(
        "features.py",
        f"""\
import tidemill as tm
tx = tm.Source("tx", schema={{"id": int, "card": str, {amount}, "at": tm.Timestamp}}, timestamp="at", event_id="id", {path})
card = tm.FeatureView("card", source=tx, entity=tm.Entity("card"), aggregations=[tm.count(windows=["1d"])])
""",
    )


def count(project: Any, card: str) -> int:
    (row,) = project.run(f"get card card={card} --at 2026-01-05T12:00:00 --json").json["rows"]
    number: int = row["features"]["card__count_1d"]
    return number


@pytest.fixture
def letters(project: Any, event: Callable[..., str]) -> Any:
    """A project with three dead letters: two whose amount is text, and one that is no JSON."""
    source(project, STRICT)
    project.write("data/1.jsonl", event(0) + event(1, "a", "1,50") + event(2, "b", "x") + "no json\n" + event(4, "b"))
    project.run("apply")
    project.stream()
    assert (count(project, "a"), count(project, "b")) == (1, 1)
    return project


def test_a_letter_that_is_good_now_counts_and_only_once(letters: Any, event: Callable[..., str]) -> None:
    assert letters.run("dead-letters replay tx --to data/2.jsonl").out.splitlines()[-1] == "wrote nothing; 3 still fail"
    assert not (letters.root / "data/2.jsonl").exists()
    source(letters, LAX)
    letters.run("apply --yes")
    done = letters.run("dead-letters replay tx --to data/2.jsonl --json").json
    assert (done["written"], done["failing"], done["delivered"]) == (2, {"not JSON": 1}, True)
    assert (letters.root / "data/2.jsonl").read_text() == event(1, "a", "1,50") + event(2, "b", "x")
    letters.stream()
    assert (count(letters, "a"), count(letters, "b")) == (2, 2)
    again = letters.run("dead-letters replay tx --to data/3.jsonl --json").json
    assert (again["written"], again["before"]) == (0, 2)
    assert letters.run("dead-letters count --json").json["replayed"] == {"tx": 2}
    assert [x["replayed"] for x in letters.run("dead-letters list --json").json["letters"]] == [True, True, False]


def test_only_letters_of_a_reason_are_replayed(letters: Any) -> None:
    source(letters, LAX)
    assert letters.run("dead-letters replay tx --to data/2.jsonl --reason JSON --json").json["written"] == 0
    assert letters.run("dead-letters replay tx --to data/2.jsonl --reason float --json").json["written"] == 2


def test_letters_are_appended_to_a_file_that_ends_with_a_line(letters: Any, event: Callable[..., str]) -> None:
    source(letters, LAX)
    last = letters.root / "data/1.jsonl"
    whole = last.read_text()
    last.write_text(whole + event(5).rstrip())
    assert "ends in the middle of a line" in letters.refused("dead-letters replay tx --to data/1.jsonl")
    last.write_text(whole + event(5))
    assert letters.run("dead-letters replay tx --to data/1.jsonl --json").json["written"] == 2
    assert last.read_text() == whole + event(5) + event(1, "a", "1,50") + event(2, "b", "x")


def test_a_file_that_the_log_does_not_read_is_warned_about(letters: Any) -> None:
    source(letters, LAX)
    ran = letters.run("dead-letters replay tx --to fixed.jsonl")
    assert ran.code == 0
    assert "fixed.jsonl is not in the log of tx (data/*.jsonl)" in " ".join(ran.out.split())


def test_a_file_that_cannot_be_written_leaves_the_letters_for_another_time(letters: Any) -> None:
    source(letters, LAX)
    assert "cannot write" in letters.refused("dead-letters replay tx --to nowhere/2.jsonl")
    assert letters.run("dead-letters replay tx --to data/2.jsonl --json").json["written"] == 2


def test_what_only_one_view_refused_stays(project: Any, event: Callable[..., str]) -> None:
    source(project, LAX)
    project.write("data/1.jsonl", event(0, None, "x"))
    project.run("apply")
    project.stream()
    done = project.run("dead-letters replay tx --to data/2.jsonl --json").json
    assert (done["written"], done["refused"]) == (0, 1)


def test_csv_letters_are_written_as_csv_under_the_same_columns(project: Any) -> None:
    source(project, STRICT, CSV)
    (project.root / "data/1.jsonl").unlink()
    head = "amount,id,card,at\n"
    bad = '"1,50",7,"a ""x""",2026-01-05T01:00:00'
    project.write("data/1.csv", f"{head}2.5,6,a,2026-01-05T00:00:00\n{bad}\n1,2\n")
    project.run("apply")
    project.stream()
    source(project, LAX, CSV)
    done = project.run("dead-letters replay tx --to data/2.csv --json").json
    assert (done["written"], done["failing"]) == (1, {"not a CSV record of 4 fields": 1})
    assert (project.root / "data/2.csv").read_text() == head + bad + "\n"
    project.run("apply --yes")
    project.stream()
    assert count(project, "'a \"x\"'") == 1


def test_parquet_letters_are_written_with_todays_columns(project: Any) -> None:
    source(project, STRICT, 'path="data/*.parquet"')
    (project.root / "data/1.jsonl").unlink()
    frame = pl.DataFrame({"id": [1], "card": ["a"], "amount": ["x"], "at": ["2026-01-05T01:00:00"]})
    frame.write_parquet(project.root / "data/1.parquet")
    project.run("apply")
    project.stream()
    source(project, LAX, 'path="data/*.parquet"')
    assert project.run("dead-letters replay tx --to data/2.parquet --json").json["written"] == 1
    project.run("apply --yes")
    project.stream()
    assert count(project, "a") == 1


def test_the_raw_bytes_of_a_letter_are_shown_as_they_came(letters: Any) -> None:
    ran = letters.run("dead-letters show tx 3")
    assert (ran.out, ran.err) == ("no json\n", "not JSON\n")
    assert letters.run("dead-letters show tx 3 --json").json["raw"] == "no json"
