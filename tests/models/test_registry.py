"""The registry of models: versions never change, aliases move in one step, and what is wrong is not loaded."""

from __future__ import annotations

import itertools
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tidemill as tm
from tests.models.conftest import COLUMNS, DEFINITIONS, NOW, fitted
from tests.project import Folder
from tests.servers.s3 import BUCKET, S3Server
from tidemill.errors import ModelError, ModelRefusedError, NotFoundError
from tidemill.models.manifest import FORMAT
from tidemill.models.registry import Models
from tidemill.times import to_micros

_numbers = itertools.count()


class ModelsContract:
    """Subclasses give the fixture `open_models`: opens the registry of one project, as another process would."""

    @pytest.fixture
    def models(self, open_models: Callable[[], Models]) -> Models:
        return open_models()

    def test_a_version_comes_back_with_all_that_was_said_of_it(self, models: Models, open_models: Callable[[], Models]) -> None:
        made = models.register(
            "m",
            fitted(),
            service="s",
            threshold=0.3,
            fill={"ratio": 1.5},
            fallback=0.2,
            max_missing=3,
            metrics={"auc": 0.75},
            data={"from": "2026-01-01", "rows": 5},
            description="the first",
            files={"report.json": b"{}"},
            by="ann",
            why="trying",
        )
        found = open_models().manifest("m", "1")
        assert found == made
        assert (found.version, found.framework, found.kind, found.columns) == ("1", "sklearn", "classifier", COLUMNS)
        assert (found.threshold, found.fill, found.fallback, found.max_missing) == (0.3, {"ratio": 1.5}, 0.2, 3)
        assert (found.created_at, found.format) == ("2026-05-01T12:00:00+00:00", FORMAT)
        assert found.libraries["scikit-learn"] == metadata.version("scikit-learn")
        assert open_models().file("m", "1", "report.json") == b"{}"
        assert open_models().load("m@1").manifest == made
        (entry,) = open_models().journal("m").history()
        assert (entry.action, entry.version, entry.by, entry.why, entry.aliases) == ("register", "1", "ann", "trying", {})

    def test_versions_are_numbered_and_listed_in_order(self, models: Models) -> None:
        for _ in range(11):
            models.register("m", "made:half", service="s")
        models.register("other", "made:half", service="s")
        assert models.names() == ["m", "other"]
        assert models.versions("m") == [str(n) for n in range(1, 12)]
        assert [f"{x.model}{x.version}" for x in models.list()][-2:] == ["m11", "other1"]
        with pytest.raises(NotFoundError, match="no version '12'; it has 1, 2"):
            models.manifest("m", "12")
        with pytest.raises(NotFoundError, match="there is no model 'mm'; did you mean 'm'"):
            models.versions("mm")

    def test_of_many_who_register_at_once_each_gets_a_version_of_its_own(self, open_models: Callable[[], Models]) -> None:
        open_models().register("m", "made:half", service="s")
        registries = [open_models() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda i: registries[i % 4].register("m", "made:half", service="s", description=str(i)), range(12)))
        assert sorted(int(m.version) for m in made) == list(range(2, 14))
        assert all(registries[0].manifest("m", m.version).description == m.description for m in made)
        assert len(registries[0].journal("m").history()) == 13

    def test_a_writer_that_died_leaves_a_number_that_is_no_version(self, models: Models) -> None:
        models._env.offline.create("models/m/1/golden.json", b"{}")
        models._env.offline.create("models/m/1/model.skops", b"half")
        with pytest.raises(NotFoundError, match="no model 'm'"):
            models.versions("m")
        assert models.register("m", "made:half", service="s").version == "2"
        assert models.versions("m") == ["2"]

    def test_promotions_move_champion_and_previous_and_every_move_is_written_down(self, models: Models) -> None:
        for _ in range(3):
            models.register("m", "made:half", service="s")
        models.promote("m", "1", by="ann", why="first")
        models.promote("m", "2", alias="challenger")
        assert models.aliases("m") == {"champion": "1", "challenger": "2"}
        assert models.resolve("m@challenger") == ("m", "2")
        models.promote("m", "2", by="bob", why="better")
        assert models.aliases("m") == {"champion": "2", "previous": "1"}
        models.promote("m", "2")  # again: `previous` is not lost
        assert models.aliases("m") == {"champion": "2", "previous": "1"}
        moves = [(e.n, e.action, e.version, e.alias, e.by, e.why) for e in models.journal("m").history()]
        assert moves[3:6] == [
            (4, "promote", "1", "champion", "ann", "first"),
            (5, "promote", "2", "challenger", None, None),
            (6, "promote", "2", "champion", "bob", "better"),
        ]

    def test_rolling_back_goes_one_step_back_each_time(self, models: Models) -> None:
        for n in "123":
            models.register("m", "made:half", service="s")
            models.promote("m", n)
        entry = models.rollback("m", by="ann", why="scores look odd")
        assert (entry.action, entry.version, entry.by, entry.why) == ("rollback", "2", "ann", "scores look odd")
        assert models.aliases("m") == {"champion": "2", "previous": "1"}
        models.rollback("m")
        assert models.aliases("m") == {"champion": "1"}
        with pytest.raises(ModelError, match="no previous version to go back to"):
            models.rollback("m")
        models.promote("m", "3")
        assert models.aliases("m") == {"champion": "3", "previous": "1"}
        with pytest.raises(NotFoundError, match="there is no model 'n'"):
            models.rollback("n")

    def test_of_many_who_promote_at_once_no_move_is_lost_or_half(self, open_models: Callable[[], Models]) -> None:
        models = open_models()
        for _ in range(4):
            models.register("m", "made:half", service="s")
        registries = [open_models() for _ in range(4)]
        start = threading.Barrier(4)

        def promote(i: int) -> bool:
            start.wait()
            try:
                registries[i].promote("m", str(i + 1))
            except ModelError as error:
                assert "someone else moved an alias" in str(error)  # noqa: PT017 - the others went through
                return False
            return True

        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(promote, range(4)))
        moves = models.journal("m").history()[4:]
        assert len(moves) == won.count(True) >= 1
        champion: str | None = None
        for entry in moves:
            expected = {"champion": entry.version} | ({"previous": champion} if champion else {})
            assert entry.aliases == expected
            champion = entry.version

    def test_a_promotion_gives_way_to_registrations_and_not_to_other_promotions(
        self, models: Models, open_models: Callable[[], Models], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = open_models()
        for _ in range(2):
            models.register("m", "made:half", service="s")
        meanwhile: list[Callable[[], Any]] = [lambda: other.register("m", "made:half", service="s")]
        load = models.load

        def loaded(reference: str) -> Any:
            found = load(reference)
            newest = models.journal("m").newest
            journal = models.journal("m")

            def later() -> Any:
                entry = newest()
                while meanwhile:
                    meanwhile.pop()()
                return entry

            monkeypatch.setattr(journal, "newest", later)
            monkeypatch.setattr(models, "journal", lambda _: journal)
            return found

        monkeypatch.setattr(models, "load", loaded)
        assert models.promote("m", "1").n == 4
        monkeypatch.undo()
        monkeypatch.setattr(models, "load", loaded)
        meanwhile.append(lambda: other.promote("m", "3"))
        with pytest.raises(ModelError, match="someone else moved an alias of model 'm' meanwhile"):
            models.promote("m", "2")

    def test_of_two_who_roll_back_at_once_one_is_refused(
        self, models: Models, open_models: Callable[[], Models], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for n in "123":
            models.register("m", "made:half", service="s")
            models.promote("m", n)
        checked, other = models.checked, open_models()

        def meanwhile(name: str, version: str) -> Any:
            other.rollback("m", by="bob")
            return checked(name, version)

        monkeypatch.setattr(models, "checked", meanwhile)
        with pytest.raises(ModelError, match="someone else moved an alias of model 'm' meanwhile"):
            models.rollback("m", by="ann")
        assert models.aliases("m") == {"champion": "2", "previous": "1"}
        assert [e.by for e in models.journal("m").history(1)] == ["bob"]

    @pytest.mark.parametrize("file", ["model.skops", "golden.json"])
    def test_a_file_that_was_changed_is_refused_before_it_is_read(self, models: Models, file: str) -> None:
        models.register("m", fitted(), service="s")
        store = models._env.offline
        data = store.read(f"models/m/1/{file}")
        assert data is not None
        store.write(f"models/m/1/{file}", data[:-1] + bytes([data[-1] ^ 1]))
        for load in (lambda: models.load("m@1"), lambda: models.promote("m", "1")):
            with pytest.raises(ModelRefusedError, match=rf"{file} has the SHA-256 .* was changed or damaged after it was registered"):
                load()
        store.delete(f"models/m/1/{file}")
        with pytest.raises(ModelRefusedError, match=f"{file} is not there"):
            models.load("m@1")


class TestInADirectory(ModelsContract):
    @pytest.fixture
    def open_models(self, tmp_path: Path) -> Callable[[], Models]:
        return project(tmp_path / "p", "")


class TestInABucket(ModelsContract):
    @pytest.fixture
    def open_models(self, tmp_path: Path, s3: S3Server) -> Callable[[], Models]:
        return project(tmp_path / "p", f'[offline]\nurl = "s3://{BUCKET}/models {os.getpid()} {next(_numbers)}"\n')


def project(path: Path, settings: str) -> Callable[[], Models]:
    path.mkdir()
    (path / "tidemill.toml").write_text('[project]\nname = "p"\n' + settings)
    (path / "features.py").write_text("import tidemill as tm\n" + DEFINITIONS)
    (path / "made.py").write_text("def half(x):\n    return [0.5] * len(x)\n")
    return lambda: tm.FeatureStore(path, clock=lambda: to_micros(NOW)).models


@pytest.fixture
def models(store: tm.FeatureStore) -> Models:
    store.models.register("m", fitted(), service="s")
    return store.models


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('tm.max("x"', 'tm.min("x"', "reads v__x_max_1d, which service 's' does not have any more"),
        ('"1h", "1d"', '"1d"', "reads v__count_1h, which service 's' does not have any more"),
        ("aggregations=", 'where="x > 0", aggregations=', "v__count_1h was defined differently"),
        ("amount / x_mean_1d", "amount - x_mean_1d", "ratio was defined differently"),
        ("amount=float", "amount=int", "ratio was defined differently"),
        ('"x": float', '"x": int', "v__x_mean_1d was defined differently"),
        ('FeatureService("s"', 'FeatureService("t"', "the definitions here do not have"),
    ],
)
def test_a_model_is_refused_where_its_features_mean_something_else(folder: Folder, models: Models, old: str, new: str, said: str) -> None:
    text = (folder.path / "features.py").read_text()
    assert old in text
    folder.write(text.replace("import tidemill as tm\n", "").replace(old, new))
    with pytest.raises(ModelRefusedError, match=rf"m 1.*{said}"):
        tm.FeatureStore(folder.path).models.load("m@1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('FeatureService("s", features=[v, ratio])', 'FeatureService("s", features=[ratio, v["x_max_1d"], v], description="all")'),
        ('tm.count(windows=["1h", "1d"])', 'tm.count(windows=["1d", "1h", "2h"])'),
        ("aggregations=", 'max_lag="1m", aggregations='),
    ],
)
def test_other_features_and_another_order_leave_a_model_as_it_is(folder: Folder, models: Models, old: str, new: str) -> None:
    models.promote("m", "1")
    row = {"k": "k1", "amount": 2.0}
    before = tm.FeatureStore(folder.path).score("m", [row], at=NOW).score
    folder.define((folder.path / "features.py").read_text().replace("import tidemill as tm\n", "").replace(old, new))
    folder.stream()
    store = tm.FeatureStore(folder.path)
    assert store.score("m", [row], at=NOW).score == before
    store.close()


def manifest(models: Models, **changes: Any) -> None:
    """Change what the manifest says."""
    store, key = models._env.offline, "models/m/1/manifest.json"
    document = json.loads(store.read(key) or b"")
    store.write(key, json.dumps({**document, **changes}).encode())


@pytest.mark.parametrize("here", ["1.8.2", "2.0.0"])
def test_another_version_of_scikit_learn_is_refused_and_another_patch_is_not(
    models: Models, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    real = metadata.version
    major_minor = ".".join(real("scikit-learn").split(".")[:2])
    monkeypatch.setattr(metadata, "version", lambda name: f"{major_minor}.99" if name == "scikit-learn" else real(name))
    models.load("m@1")
    monkeypatch.setattr(metadata, "version", lambda name: here if name == "scikit-learn" else real(name))
    with pytest.raises(ModelRefusedError, match=rf"made with scikit-learn .*, and {here} is installed.*pip install 'scikit-learn=="):
        models.load("m@1")


def test_a_library_that_is_not_installed_is_refused(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModelRefusedError, match="not installed here: pip install 'scikit-learn=="):
        models.load("m@1")


def test_the_pickle_of_a_river_model_is_not_even_read_where_its_hash_or_rivers_version_differ(
    store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from river import linear_model

    store.models.register("m", linear_model.LogisticRegression(), service="s", fill=dict.fromkeys(COLUMNS, 0.0))
    monkeypatch.setattr("pickle.loads", lambda *_: pytest.fail("the pickle was read"))
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.25.0" if name == "river" else real(name))
    with pytest.raises(ModelRefusedError, match=r"made with river .*, and 0\.25\.0 is installed"):
        store.models.load("m@1")
    monkeypatch.setattr(metadata, "version", real)
    store.env.offline.write("models/m/1/model.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelRefusedError, match="has the SHA-256"):
        store.models.load("m@1")


def test_a_model_that_scores_its_golden_rows_otherwise_here_is_refused(models: Models) -> None:
    manifest(models, positive=0)
    with pytest.raises(ModelRefusedError, match=r"m 1 scores .* on golden row 0, and .* was noted when it was registered"):
        models.load("m@1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "has format 99, and this tidemill reads 1"),
        ({"features": "all"}, "is not a model's manifest"),
        ({"classes": [0, 1, 2]}, "names two classes"),
        ({"positive": 7}, "names two classes"),
        ({"model": "other"}, "is the manifest of other 1"),
        ({"framework": "keras"}, "there is no framework 'keras'"),
        ({"definition": "0" * 16}, "contradicts itself about its features"),
    ],
)
def test_a_manifest_that_is_none_is_refused(models: Models, changes: dict[str, Any], said: str) -> None:
    manifest(models, **changes)
    with pytest.raises(ModelRefusedError, match=said):
        models.load("m@1")


def test_a_manifest_that_is_no_json_and_a_journal_that_is_none_are_refused(models: Models) -> None:
    models._env.offline.write("models/m/1/manifest.json", b"{")
    with pytest.raises(ModelRefusedError, match="is not a model's manifest"):
        models.load("m@1")
    models._env.offline.write("models/m/journal/00000001.json", b"{}")
    with pytest.raises(tm.errors.StoreError, match="is no entry of a model's journal"):
        models.aliases("m")


def test_nothing_is_promoted_whose_golden_scores_are_not_finite_any_more(folder: Folder, store: tm.FeatureStore) -> None:
    (folder.path / "weights.txt").write_text("0.5")
    (folder.path / "made.py").write_text(
        "from pathlib import Path\n\ndef score(x):\n    return [float((Path(__file__).parent / 'weights.txt').read_text())] * len(x)\n"
    )
    store.models.register("m", "made:score", service="s")
    (folder.path / "weights.txt").write_text("nan")
    with pytest.raises(ModelRefusedError, match="m 1 scores nan on a golden row"):
        store.models.promote("m", "1")
    assert store.models.aliases("m") == {}
    (folder.path / "weights.txt").write_text("1.5")
    with pytest.raises(ModelRefusedError, match="a classifier's score is a probability"):
        store.models.promote("m", "1")


def test_golden_rows_that_cannot_be_kept_are_refused_at_once(models: Models) -> None:
    """JSON has no infinity: the version would score the row otherwise from then on, and never be promoted."""
    with pytest.raises(ModelError, match="golden rows hold an infinity"):
        models.register("m", fitted(), service="s", golden=np.full((1, len(COLUMNS)), np.inf))


def test_metrics_may_be_numpys_and_what_no_manifest_can_hold_claims_no_number(models: Models) -> None:
    for wrong in ({"metrics": {"curve": object()}}, {"data": {"rows": np.arange(3)}}, {"description": "\ud800"}):
        with pytest.raises(ModelError, match="are kept as JSON"):
            models.register("n", fitted(), service="s", **wrong)
    found = models.register("n", fitted(), service="s", metrics={"auc": np.float64(0.75), "rows": np.int64(3)}, by="ann\udcff")
    assert found.version == "1"
    assert models.manifest("n", "1").metrics == {"auc": 0.75, "rows": 3}
    assert models.journal("n").newest().by == "ann?"


def test_a_version_can_be_promoted_to_champion_or_challenger_only(models: Models) -> None:
    with pytest.raises(ModelError, match="promoted to champion or challenger; got 'previous'"):
        models.promote("m", "1", alias="previous")
    for version in ("2", "champion", "01", ""):
        with pytest.raises(NotFoundError, match=f"no version '{version}'"):
            models.promote("m", version)


@given(st.lists(st.one_of(st.sampled_from("123"), st.just("back"), st.just("new")), max_size=12))
@settings(max_examples=40)
def test_after_any_moves_the_aliases_are_the_top_of_a_stack(moves: list[str]) -> None:
    """The oracle: a promotion puts a version on top, unless it is there; a roll-back takes the top away."""
    with TemporaryDirectory() as folder:
        models = project(Path(folder) / "p", "")()
        stack: list[str] = []
        for _ in "123":
            models.register("m", "made:half", service="s")
        for move in moves:
            if move == "new":
                models.register("m", "made:half", service="s")
            elif move != "back":
                models.promote("m", move)
                stack += [move] if stack[-1:] != [move] else []
            elif len(stack) > 1:
                models.rollback("m")
                stack.pop()
            else:
                with pytest.raises(ModelError, match="no previous version"):
                    models.rollback("m")
            assert models.aliases("m") == dict(zip(("champion", "previous"), reversed(stack), strict=False))
