"""Reads before, during and after an import, computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

import tidemill as tm
from tests.backfill.world import AT, KEYS, World, make_events, write
from tidemill.audit import audit, recompute
from tidemill.read_log import ReadLog

ALL = make_events(3_000)


@pytest.mark.parametrize("oracle", [False, True])
def test_what_was_read_around_imports_is_right_and_an_import_is_folded_once_for_all_who_knew_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, oracle: bool
) -> None:
    world = World(tmp_path / "p")
    world.live(ALL[2_000:2_100])
    log = ReadLog(world.env.offline)
    client = tm.FeatureStore(world.env, clock=lambda: AT, read_log=log)

    def read() -> None:
        for _ in range(5):
            client.get_online_features(["v"], [{"k": k} for k in KEYS])

    read()
    world.history("a.jsonl", ALL[:1_500])
    world.backfill(publishing=False)
    read()
    world.batch()
    read()
    write(world.path / "more" / "b.jsonl", ALL[1_500:2_000])
    world.backfill(files=("more",))
    world.live(ALL[2_100:2_200])
    read()
    log.close()
    folded: list[int] = []
    of = recompute._Run

    def run(checks: list[object], base: list[int], tails: list[list[int]]) -> object:
        folded.append(len(base) + sum(map(len, tails)))
        return of(checks, base, tails)  # type: ignore[arg-type]

    monkeypatch.setattr(recompute, "_Run", run)
    report = audit(world.env, oracle=oracle)
    assert (report.compared, report.different, report.uncompared) == (4 * 5 * 3 * 7, 0, {})
    if not oracle:
        assert sum(folded) < 3 * 2_200, "events of an import were folded for each read again"
