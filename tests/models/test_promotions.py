"""Promotions under load: another version is taken without a request noticing, or the old one goes on and says why."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import pytest

import tidemill as tm
from tests.models.conftest import NOW, fitted
from tests.project import Folder
from tidemill.errors import ModelRefusedError, StoreUnavailableError

ROW = {"k": "k1", "amount": 2.0}


@pytest.fixture
def two(store: tm.FeatureStore) -> dict[str, float]:
    """Two versions of `m` that score differently, the first of them champion: what each scores for ROW."""
    for negative in (False, True):
        version = store.models.register("m", fitted(negative=negative), service="s").version
        store.models.promote("m", version)
    found = {v: store.score(f"m@{v}", [ROW]).score[0] or 0.0 for v in "12"}
    store.models.rollback("m")
    assert abs(found["1"] - found["2"]) > 0.1
    return found


class Load:
    """Threads that score without a pause; what they were answered."""

    def __init__(self, store: tm.FeatureStore, threads: int = 4) -> None:
        self.answers: list[tuple[str, float | None]] = []
        self.failures: list[BaseException] = []
        self._store = store
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def until(self, version: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.answers and self.answers[-1][0] == version):
            assert time.monotonic() < deadline, f"{version} never served"
            time.sleep(0.01)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                scores = self._store.score("m", [ROW])
            except BaseException as error:  # noqa: BLE001 - any at all is a failed request
                self.failures.append(error)
            else:
                self.answers.append((scores.version, scores.score[0]))


def test_promotions_and_rollbacks_under_load_fail_no_request_and_mix_no_answer(
    open_store: Callable[[], tm.FeatureStore], two: dict[str, float]
) -> None:
    operator, scorer = open_store(), open_store()
    with Load(scorer) as load:
        load.until("1")
        for _ in range(3):  # within seconds, by the thread in the background
            operator.models.promote("m", "2")
            load.until("2")
            operator.models.rollback("m")
            load.until("1")
    assert load.failures == []
    assert {v for v, _ in load.answers} == {"1", "2"}
    assert all(score == two[version] for version, score in load.answers)


def test_versions_swapped_as_fast_as_it_goes_mix_no_answer(open_store: Callable[[], tm.FeatureStore], two: dict[str, float]) -> None:
    operator, scorer = open_store(), open_store()
    scorer.score("m", [ROW])
    with Load(scorer) as load:
        for _ in range(5):
            operator.models.promote("m", "2")
            scorer.scorer.served.look()
            operator.models.rollback("m")
            scorer.scorer.served.look()
    assert load.failures == []
    assert all(score == two[version] for version, score in load.answers)


@pytest.mark.usefixtures("two")
def test_a_promotion_is_seen_by_a_process_that_nobody_asks_anything(open_store: Callable[[], tm.FeatureStore]) -> None:
    operator, scorer = open_store(), open_store()
    scorer.score("m", [ROW])
    operator.models.promote("m", "2")
    deadline = time.monotonic() + 15
    while scorer.scorer.served.all()[0].now.loaded.manifest.version != "2":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert scorer.score("m", [ROW]).version == "2"


@pytest.mark.usefixtures("two")
def test_a_corrupt_champion_leaves_the_old_model_serving_and_says_so(
    open_store: Callable[[], tm.FeatureStore], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, scorer = open_store(), open_store()
    assert scorer.score("m", [ROW]).warning is None
    operator.models.promote("m", "2")
    good = operator.env.offline.read("models/m/2/model.skops")
    assert good is not None
    operator.env.offline.write("models/m/2/model.skops", good[:-10])
    for _ in range(3):
        scorer.scorer.served.look()
    scores = scorer.score("m", [ROW])
    assert scores.version == "1"
    assert scores.warning is not None
    assert scores.warning.startswith("version 2 is refused, and version 1 goes on:")
    assert "model.skops has the SHA-256" in scores.warning
    assert len([r for r in caplog.records if r.name == "tidemill.models"]) == 1  # once, not once a second

    # A process that starts now has no old model in memory: `previous` stands in, and it says so too.
    fresh = open_store().score("m", [ROW])
    assert (fresh.version, fresh.warning) == ("1", scores.warning)

    operator.env.offline.write("models/m/2/model.skops", good)  # restored from a copy
    monkeypatch.setattr("tidemill.models.serving.RETRY_SECONDS", 0.0)
    scorer.scorer.served.look()
    assert (scorer.score("m", [ROW]).version, scorer.score("m", [ROW]).warning) == ("2", None)


@pytest.mark.usefixtures("two")
def test_rolling_back_from_a_corrupt_champion_ends_the_warning(open_store: Callable[[], tm.FeatureStore]) -> None:
    operator, scorer = open_store(), open_store()
    scorer.score("m", [ROW])
    operator.models.promote("m", "2")
    operator.env.offline.write("models/m/2/model.skops", b"")
    scorer.scorer.served.look()
    assert scorer.score("m", [ROW]).warning is not None
    operator.models.rollback("m")
    scorer.scorer.served.look()
    assert (scorer.score("m", [ROW]).version, scorer.score("m", [ROW]).warning) == ("1", None)


def test_a_first_champion_that_is_corrupt_is_an_error(store: tm.FeatureStore) -> None:
    store.models.register("m", fitted(), service="s")
    store.models.promote("m", "1")
    store.env.offline.write("models/m/1/model.skops", b"")
    with pytest.raises(ModelRefusedError, match="has the SHA-256"):
        store.score("m", [ROW])


def test_a_model_of_other_definitions_leaves_the_old_one_serving(
    folder: Folder, open_store: Callable[[], tm.FeatureStore], two: dict[str, float]
) -> None:
    scorer = open_store()
    scorer.score("m", [ROW])
    folder.write((folder.path / "features.py").read_text().replace("import tidemill as tm\n", "").replace("amount / x", "amount - x"))
    changed = open_store()
    changed.models.register("m", fitted(), service="s")
    changed.models.promote("m", "3")
    scorer.scorer.served.look()
    scores = scorer.score("m", [ROW])
    assert (scores.version, scores.score[0]) == ("1", two["1"])
    assert "version 3 is refused, and version 1 goes on: m 3 was made when ratio was defined differently" in (scores.warning or "")


@pytest.mark.usefixtures("two")
def test_an_offline_store_that_is_away_or_slow_delays_no_request(
    open_store: Callable[[], tm.FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, scorer = open_store(), open_store()
    scorer.score("m", [ROW])
    over, asked = threading.Event(), threading.Event()

    def silent(_: str) -> bytes:
        asked.set()
        over.wait(30)
        raise StoreUnavailableError("nobody there")

    with monkeypatch.context() as away:
        away.setattr(scorer.env.offline, "read", silent)
        operator.models.promote("m", "2")
        assert asked.wait(15)  # the background thread hangs in it now
        assert {scorer.score("m", [ROW]).version for _ in range(20)} == {"1"}
        over.set()
        scorer.scorer.served.look()
        assert (scorer.score("m", [ROW]).version, scorer.score("m", [ROW]).warning) == ("1", None)
    scorer.scorer.served.look()
    assert scorer.score("m", [ROW]).version == "2"


@pytest.mark.usefixtures("two")
def test_a_store_that_goes_away_between_the_journal_and_the_artifact_is_asked_again(
    open_store: Callable[[], tm.FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, scorer = open_store(), open_store()
    scorer.score("m", [ROW])
    operator.models.promote("m", "2")
    read = scorer.env.offline.read

    def half(key: str) -> bytes | None:
        if "journal" not in key:
            raise StoreUnavailableError("nobody there")
        return read(key)

    with monkeypatch.context() as away:
        away.setattr(scorer.env.offline, "read", half)
        scorer.scorer.served.look()
        assert (scorer.score("m", [ROW]).version, scorer.score("m", [ROW]).warning) == ("1", None)
    scorer.scorer.served.look()
    assert scorer.score("m", [ROW]).version == "2"


@pytest.mark.usefixtures("two")
def test_a_pinned_version_and_a_challenger_are_served_beside_the_champion(open_store: Callable[[], tm.FeatureStore]) -> None:
    operator, scorer = open_store(), open_store()
    operator.models.promote("m", "2", alias="challenger")
    served: list[str] = [scorer.score(name, [ROW]).version for name in ("m", "m@challenger", "m@2", "m@1", "m@champion")]
    assert served == ["1", "2", "2", "1", "1"]
    operator.models.promote("m", "2")
    scorer.scorer.served.look()
    assert [scorer.score(name, [ROW]).version for name in ("m", "m@challenger", "m@1", "m@previous")] == ["2", "2", "1", "1"]


@pytest.mark.usefixtures("two")
def test_a_store_that_nobody_holds_leaves_no_thread(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.models.serving.LOOK_SECONDS", 0.01)
    before = set(threading.enumerate())
    for close in (True, False):
        store = tm.FeatureStore(folder.path)
        store.score("m", [ROW], at=NOW)
        (thread,) = [t for t in threading.enumerate() if t not in before and t.name == "tidemill-models"]
        if close:
            store.close()
        else:
            store.env.online.close()
        del store
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.usefixtures("two")
def test_a_process_that_scored_ends_at_once(folder: Folder) -> None:
    program = f"import tidemill as tm; print(tm.FeatureStore({str(folder.path)!r}).score('m', [{ROW!r}], at={NOW!r}).version)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_a_model_whose_code_raises_when_it_is_loaded_ends_nothing(folder: Folder, open_store: Callable[[], tm.FeatureStore]) -> None:
    operator, scorer = open_store(), open_store()
    (folder.path / "made.py").write_text("def a(x):\n    return [0.5] * len(x)\ndef b(x):\n    return [0.25] * len(x)\n")
    for name in "ab":
        operator.models.register("m", f"made:{name}", service="s")
    operator.models.promote("m", "1")
    scorer.score("m", [ROW])
    operator.models.promote("m", "2")
    (folder.path / "made.py").write_text("raise SystemError('broken')\n")
    scorer.scorer.served.look()
    scores: Any = scorer.score("m", [ROW])
    assert (scores.version, scores.score) == ("1", [0.5])
    assert "SystemError: broken" in scores.warning
