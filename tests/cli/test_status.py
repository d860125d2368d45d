"""`status`: how far everything is; and how `get` shows what it read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def sources(project: Any) -> Any:
    (source,) = project.run("status --json").json["sources"]
    return source


def test_before_apply_there_is_nothing_to_say_but_that(project: Any) -> None:
    ran = project.run("status")
    assert (ran.code, ran.out) == (0, "p: nothing applied: run `tidemill apply`, no workers\n")


def test_lag_is_told_in_records_and_in_time(project: Any, event: Callable[..., str]) -> None:
    project.run("apply")
    project.stream()
    assert sources(project)["partitions"][0]["lag"] == 0
    with (project.root / "data/1.jsonl").open("a") as log:
        log.write(event(1500, "a", hour=2))
    (partition,) = sources(project)["partitions"]
    assert (partition["position"], partition["log_end"], partition["lag"]) == (1500, 1501, 1)
    assert partition["through"] == "2026-01-05T00:24:59+00:00"
    assert partition["lag_micros"] == 2 * 3600 * 10**6 + 1_000_000  # the 1501st event is at 02:25:00, after 00:24:59
    out = project.run("status").out
    assert "2h" in out
    assert "1 record behind" in out


def test_definitions_that_changed_since_are_pointed_out(project: Any) -> None:
    project.run("apply")
    project.write("features.py", (project.root / "features.py").read_text().replace('"1h", "1d"', '"1h", "1d", "7d"'))
    assert project.run("status --json").json["pending"] is True
    assert "the definitions have changed since they were applied" in project.run("status").out
    project.write("features.py", "x = (")
    ran = project.run("status")
    assert ran.code == 0
    assert "the definitions file cannot be read: see `tidemill plan`" in ran.out


def test_a_bundle_that_was_rolled_back_is_empty_until_a_worker_comes(project: Any) -> None:
    project.run("apply")
    project.stream()
    project.run("batch")
    assert "its features are missing until a worker has rebuilt them" in project.run("batch --rollback tx").out
    (bundle,) = project.run("status --json").json["bundles"]
    assert (bundle["state"], bundle["folded"], bundle["published"]) == ("empty", 0, 0)
    project.stream()
    assert project.run("status --json").json["bundles"][0]["state"] == "serving"


def test_nothing_is_wider_than_a_hundred_columns(project: Any, event: Callable[..., str]) -> None:
    project.run("apply")
    with (project.root / "data/1.jsonl").open("a") as log:
        log.write(event(1500, "a", "much" * 50) + "\x1b[31mno [bold]json" * 20 + "\n")
    project.stream()
    project.run("batch")
    rows = [{"card": card, "amount": 1.0} for card in ("a", "b", "nobody", "ü" * 90, "", "c")]
    project.write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for command in ("plan", "status", "batch", "dead-letters list", "dead-letters", "get s --file rows.jsonl", "get s card=a amount=1"):
        ran = project.run(command)
        assert ran.code == 0, ran.err
        assert max(map(len, ran.out.splitlines())) <= 100, (command, ran.out)
        assert "\x1b" not in ran.out


def test_an_answer_is_the_same_however_the_entities_are_given(project: Any) -> None:
    project.run("apply")
    project.stream()
    at = "--at 2026-01-05T00:30:00 --json"
    project.write("rows.csv", "amount,card,ignored\n75,a,x\n7.5,b,y\n")
    project.write("rows.jsonl", '{"card": "a", "amount": 75, "ignored": 1}\n\n{"card": "b", "amount": 7.5}\n')
    by_row = project.run(f"""get s --row '{{"card": "a", "amount": 75}}' --row '{{"card": "b", "amount": 7.5}}' {at}""").json["rows"]
    assert [row["features"]["share"] for row in by_row] == [0.2, 0.02]
    for given in ("--file rows.csv", "--file rows.jsonl"):
        assert project.run(f"get s {given} {at}").json["rows"] == by_row
    assert [project.run(f"get s card={card} amount={amount} {at}").json["rows"][0] for card, amount in (("a", 75), ("b", 7.5))] == by_row


def test_a_few_entities_stand_beside_one_another_and_say_what_is_missing(project: Any) -> None:
    project.run("apply")
    project.stream()
    ran = project.run('get card:count_1d card:amount_sum_1d --row \'{"card": "a"}\' --row \'{"card": "z"}\' --at 2026-01-05T00:30:00')
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["feature", "card=a", "card=z"]
    assert ["count_1d", "750", "0", "missing"] in lines
