"""`plan`: what comes, changes and goes, what that invalidates, and how much an entity takes."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
from typing import Any

import pytest

from tidemill.kernel.tiles import Ladder
from tidemill.times import Window

BASE = """\
import tidemill as tm
tx = tm.Source("tx", schema={SCHEMA}, timestamp="at", event_id="id", path="PATH"MORE)
card = tm.FeatureView("card", source=tx, entity=tm.Entity("card"), aggregations=[AGGREGATIONS]VIEW)
"""
SCHEMA = '"id": int, "card": str, "shop": str, "amount": float, "at": tm.Timestamp, "seen": tm.Timestamp'
COUNT, SUM = 'tm.count(windows=["1h", "1d"])', 'tm.sum("amount", windows=["1d"])'


def defined(project: Any, *aggregations: str, path: str = "data/*.jsonl", more: str = "", view: str = "", tail: str = "") -> None:
    text = BASE.replace("SCHEMA", SCHEMA).replace("PATH", path).replace("MORE", more).replace("AGGREGATIONS", ", ".join(aggregations))
    project.write("features.py", text.replace("VIEW", view) + tail)


def plan(project: Any) -> Any:
    return project.run("plan --json").json


def kinds(found: Any, view: str = "card") -> dict[str, str]:
    return {f["name"]: f["kind"] for v in found["views"] if v["name"] == view for f in v["features"]}


def bundles(found: Any) -> list[str]:
    return [b["kind"] for v in found["views"] for b in v["bundles"]]


def test_everything_is_added_the_first_time_and_nothing_the_second(project: Any) -> None:
    defined(project, COUNT, SUM)
    first = plan(project)
    assert (first["version"], first["differs"], bundles(first)) == (0, True, ["new"])
    assert kinds(first) == {"count_1h": "added", "count_1d": "added", "amount_sum_1d": "added"}
    project.run("apply")
    second = plan(project)
    assert (second["version"], second["differs"], kinds(second), bundles(second)) == (1, False, {}, ["kept"])


def test_an_added_aggregation_leaves_the_others_serving_and_waits_for_batch_where_there_is_history(project: Any) -> None:
    defined(project, COUNT)
    project.run("apply")
    defined(project, COUNT, SUM)
    assert plan(project)["missing"] == []  # nothing is archived: the stream reads it all from the log's beginning
    project.stream()
    found = plan(project)
    assert (kinds(found), bundles(found)) == ({"amount_sum_1d": "added"}, ["kept", "new"])
    assert found["missing"] == ["card:amount_sum_1d"]
    assert (found["removed"], found["invalidated"]) == ([], [])
    assert "card:amount_sum_1d will be missing until `tidemill batch` has folded" in " ".join(project.run("plan").out.split())
    assert "1 missing until `tidemill batch` has run" in project.run("apply").out


def test_what_serves_while_another_feature_waits_is_seen_in_status_and_get(project: Any) -> None:
    defined(project, COUNT)
    project.run("apply")
    project.stream()
    defined(project, COUNT, SUM)
    project.run("apply")
    project.stream()
    assert [b["state"] for b in project.run("status --json").json["bundles"]] == ["serving", "waiting for batch"]
    assert "1 feature of card missing until `tidemill batch`" in " ".join(project.run("status").out.split())
    (row,) = project.run("get card card=a --at 2026-01-05T00:30:00 --json").json["rows"]
    assert row["status"] == {"card__count_1h": "ok", "card__count_1d": "ok", "card__amount_sum_1d": "missing"}
    assert project.run("batch").code == 0
    project.stream()
    (row,) = project.run("get card card=a --at 2026-01-05T00:30:00 --json").json["rows"]
    assert row["features"] == {"card__count_1h": 750, "card__count_1d": 750, "card__amount_sum_1d": 375.0}
    assert row["positions"] == {"card": {"0": 1500}}


def test_a_removed_feature_retires_its_bundle_and_needs_a_yes(project: Any) -> None:
    defined(project, COUNT)
    project.run("apply")
    defined(project, COUNT, SUM)
    project.run("apply")
    defined(project, COUNT)
    found = plan(project)
    assert (found["removed"], kinds(found), bundles(found)) == (["card:amount_sum_1d"], {"amount_sum_1d": "removed"}, ["kept", "retired"])
    assert "this removes card:amount_sum_1d: look at it with `tidemill plan`, and say `tidemill apply --yes`" in project.refused("apply")
    assert plan(project)["version"] == 2
    assert project.run("apply --yes").out.startswith("applied version 3: 1 view, 2 features")


def test_a_changed_filter_of_the_view_makes_all_its_features_begin_anew(project: Any) -> None:
    defined(project, COUNT)
    project.run("apply")
    defined(project, COUNT, view=', where="amount > 1"')
    found = plan(project)
    assert kinds(found) == {"count_1h": "changed", "count_1d": "changed"}
    assert found["views"][0]["details"] == ["where: none -> amount > 1"]
    assert found["invalidated"] == ["card:count_1h", "card:count_1d"]
    assert "this makes card:count_1h, card:count_1d begin anew" in project.refused("apply")


def test_a_wider_set_of_windows_changes_only_what_is_new(project: Any) -> None:
    defined(project, 'tm.count(windows=["1h"])')
    project.run("apply")
    defined(project, 'tm.count(windows=["1h", "7d"])')
    assert kinds(plan(project)) == {"count_7d": "added"}


def test_a_view_that_is_gone_is_removed_with_its_source(project: Any) -> None:
    other = "shop = tm.FeatureView('shop', source=tx, entity=tm.Entity('shop'), aggregations=[tm.count(windows=['1h'])])\n"
    defined(project, COUNT, tail=other)
    project.run("apply")
    defined(project, COUNT)
    found = plan(project)
    assert [(v["name"], v["kind"]) for v in found["views"]] == [("card", "unchanged"), ("shop", "removed")]
    assert found["removed"] == ["shop"]
    assert "- view shop" in project.run("plan").out


def test_a_service_says_which_features_it_gains_and_loses(project: Any) -> None:
    defined(project, COUNT, tail="s = tm.FeatureService('s', [card['count_1h']])\n")
    project.run("apply")
    defined(project, COUNT, tail="s = tm.FeatureService('s', [card['count_1d']])\n")
    assert plan(project)["services"] == [{"name": "s", "kind": "changed", "added": ["card:count_1d"], "removed": ["card:count_1h"]}]


@pytest.mark.parametrize(
    ("more", "kind", "detail"),
    [
        ({"path": "elsewhere/*.jsonl"}, "moved", "path: data/*.jsonl -> elsewhere/*.jsonl"),
        ({"more": ', arrival="seen"'}, "redefined", "arrival: none -> seen"),
        ({"more": ', description="payments"'}, "changed", None),
    ],
)
def test_a_source_says_how_it_differs(project: Any, more: dict[str, str], kind: str, detail: str | None) -> None:
    defined(project, COUNT)
    project.run("apply")
    defined(project, COUNT, **more)
    (source,) = plan(project)["sources"]
    assert (source["kind"], source["details"]) == (kind, [] if detail is None else [detail])
    warned = "source tx is to be read from another place" in " ".join(project.run("plan").out.split())
    assert warned == (kind == "moved")


def test_plan_says_what_an_entity_takes_and_warns_when_that_is_much(project: Any) -> None:
    defined(project, COUNT)
    found = plan(project)
    (size,) = found["sizes"]
    tiles = Ladder([Window.parse("1h"), Window.parse("1d")]).most_tiles()
    assert (size["tiles"], size["bytes"], found["warnings"]) == (tiles, tiles * 24, [])  # span, tag, count
    defined(project, 'tm.approx_count_distinct("shop", windows=["1h", "1d", "30d"])')
    found = plan(project)
    assert found["sizes"][0]["bytes"] > tiles * 7168
    assert "most of it distinct shop" in found["warnings"][0]
    assert "warning: an entity of card can take" in " ".join(project.run("plan").out.split())


def test_at_a_terminal_apply_asks_before_it_removes(project: Any) -> None:
    defined(project, COUNT, SUM)
    project.run("apply")
    defined(project, COUNT)
    for answer, said in (("n", None), ("y", "applied version 2")):
        assert_answered(project, answer, said)


def assert_answered(project: Any, answer: str, said: str | None) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(project.command("apply"), cwd=project.root, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while b"Apply? [y/N]" not in shown:
        shown += os.read(ours, 4096)
    os.write(ours, f"{answer}\n".encode())
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    code = process.wait(timeout=30)
    assert b"removes card:amount_sum_1d" in shown
    if said is None:
        assert code == 1
        assert b"nothing was applied" in shown
    else:
        assert code == 0
        assert said.encode() in shown
