"""The learner: the same model however it is disturbed, and what becomes of it when someone moves the alias."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tests.learning.world import FILL, START, World, river_model, weights
from tidemill.apps import load
from tidemill.errors import DefinitionError, LeaseError, ModelError, StoreError, StoreUnavailableError
from tidemill.journals import entries
from tidemill.learning import checkpoint as checkpoints
from tidemill.learning import inputs
from tidemill.learning.checkpoint import checkpoint_key
from tidemill.learning.learner import Learner
from tidemill.learning.settings import LearnerSettings
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.leases import Lease
from tidemill.prediction_log import PREDICTIONS
from tidemill.times import DAY, HOUR

app = load("serving.learner")


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("learning") / "p")


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copied(tmp_path / "p")


def learned(world: World, **changed: Any) -> Learner:
    """A learner that has done all there is to do."""
    learner = Learner(world.env(), world.settings(**changed), now=lambda: START)
    to_the_end(learner)
    learner.close()
    return learner


def to_the_end(learner: Learner) -> None:
    while learner.step():
        pass


def by_learned(world: World) -> dict[int, Any]:
    """The weights of each version that a learner published, by how many examples it had seen."""
    models = world.models()
    found: dict[int, Any] = {}
    for manifest in models.list("m"):
        if "learner" in manifest.data:
            model = pickle.loads(models.checked("m", manifest.version)[1])
            assert manifest.data["learner"]["learned"] not in found, "published twice"
            found[manifest.data["learner"]["learned"]] = weights(model)
    return found


@pytest.fixture(scope="module")
def right(made: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[int, Any], dict[str, float]]:
    """The undisturbed run: what is learned in the end, what the versions on the way had, and the metrics."""
    world = made.copied(tmp_path_factory.mktemp("right") / "p")
    world.write(world.labels)
    learner = learned(world)
    assert learner.counts["learned"] == len(world.labels)
    return weights(learner.online.model), by_learned(world), learner.metrics.metrics()


def test_it_learns_every_example_once_in_the_order_of_predictions(made: World, right: Any, world: World) -> None:
    """The oracle: the logged vectors and labels, one after the other."""
    model, by_id = river_model(), {x["prediction_id"]: x["bad"] for x in made.labels}
    logged = sorted(entries(world.env().offline, PREDICTIONS), key=lambda e: (e["at"]["$time"], e["ids"]))
    for entry in logged:
        row = {n: float(FILL[n] if v is None else v) for n, v in zip(entry["features"], entry["x"][0], strict=True)}
        model.learn_one(row, by_id[entry["ids"][0]])
    assert weights(model) == right[0]
    assert any(v is None for e in logged for v in e["x"][0]), "nulls are filled in too"


def test_metrics_are_of_the_scores_that_were_served(made: World, right: Any, world: World) -> None:
    from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

    by_id = {x["prediction_id"]: x["bad"] for x in made.labels}
    pairs = [(e["score"][0], by_id[e["ids"][0]]) for e in entries(world.env().offline, PREDICTIONS)]
    scores, labels = zip(*pairs, strict=True)
    found = right[2]
    assert found["log_loss"] == pytest.approx(log_loss(labels, scores))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, scores))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=0.01)


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere_with_labels_shuffled_and_doubled_it_ends_the_same(
    world: World, right: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(inputs, "ROWS", dice.choice([1, 7, 60]))
    labels = [*world.labels, *dice.sample(world.labels, 80)]
    dice.shuffle(labels)
    cut = dice.randrange(len(labels))
    world.write(labels[:cut], end=False)
    settings = world.settings(lateness=30 * DAY)
    write, create = DirectoryStore.write, DirectoryStore.create
    left = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, key: str, data: bytes) -> Any:
            left[0] -= 1
            if left[0] == 0 and dice.random() < 0.5:
                raise Killed
            result = real(self, key, data)
            if left[0] == 0:
                raise Killed
            return result

        return call

    monkeypatch.setattr(DirectoryStore, "write", dying(write))
    monkeypatch.setattr(DirectoryStore, "create", dying(create))
    kills, appended = 0, False
    while True:
        left[0] = dice.randrange(1, 25) if kills < 25 else -1
        try:
            learner = Learner(world.env(), settings, now=lambda: START, checkpoint_seconds=dice.choice([0.0, 1e9]))
            while learner.step():
                pass
            if not appended:
                world.write(labels[cut:])
                appended = True
                continue
            learner.close()
            if kills >= 5:
                break
            kills += 1
        except Killed:
            kills += 1
    assert weights(learner.online.model) == right[0]
    assert by_learned(world) == right[1]
    assert learner.metrics.metrics() == right[2]
    assert (learner.joiner.counts["used"], learner.joiner.counts["duplicate"]) == (len(world.labels), 80)
    assert world.models().aliases("m")["champion"] == learner.version


def test_a_real_process_killed_hard_again_and_again_ends_the_same(world: World, right: Any) -> None:
    command = [sys.executable, "-c", "from tidemill.cli import main; main()", "learn", "--project", str(world.path)]
    world.write(world.labels[:40], end=False)
    dice = random.Random(1)
    for n in range(4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "learning m" in process.stdout.readline()
            time.sleep(dice.random())
            world.write(world.labels[40 + 55 * n : 40 + 55 * (n + 1)], end=n == 3)
            time.sleep(dice.random())
            process.send_signal(signal.SIGKILL)
    done = subprocess.run([*command, "--once", "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    assert status["counts"]["learned"] == len(world.labels)
    (last,) = [w for n, w in by_learned(world).items() if n == len(world.labels)]
    assert last == right[0]


def test_sigterm_ends_it_with_everything_kept(world: World, right: Any) -> None:
    world.write(world.labels)
    command = [sys.executable, "-c", "from tidemill.cli import main; main()", "learn", "--project", str(world.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "learned=250" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    assert learner.counts["learned"] == len(world.labels)
    assert weights(learner.online.model) == right[0]


# ---- the alias ------------------------------------------------------------------------------------------------------------------------


def test_rolling_back_resets_the_learner_and_it_goes_on_from_there(world: World) -> None:
    models = world.models()
    half = world.labels[:160]
    world.write([*half, {**world.labels[0], "prediction_id": "x", "at": START + 5 * HOUR - 1, "known": START + 5 * HOUR}], end=False)
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    while learner.step():
        pass
    assert learner.counts["published"] >= 2
    before = learner.version
    models.rollback("m")
    target = models.aliases("m")["champion"]
    assert target != before
    world.write(world.labels[160:])
    while learner.step():
        pass
    assert learner.counts["resets"] == 1
    models = world.models()
    new = [m for m in models.list("m") if int(m.version) > int(before)]
    assert new
    assert new[0].data["from"] == target
    # It is the version that was rolled back to, plus what came after the reset, and nothing of the bad one.
    again = pickle.loads(models.checked("m", target)[1])
    logged = {e["ids"][0]: e for e in entries(world.env().offline, PREDICTIONS)}
    by_id = {x["prediction_id"]: x["bad"] for x in world.labels}
    order = sorted(logged.values(), key=lambda e: (e["at"]["$time"], e["ids"]))
    seen = learner.counts["learned"]
    since = [e for e in order if e["at"]["$time"] + 2 * HOUR >= START + 5 * HOUR]
    assert 0 < len(since) < seen
    for e in since:
        row = {n: float(FILL[n] if v is None else v) for n, v in zip(e["features"], e["x"][0], strict=True)}
        again.learn_one(row, by_id[e["ids"][0]])
    assert weights(learner.online.model) == weights(again)
    assert learner.metrics.examples == len(since)


def test_a_roll_back_between_registering_and_promoting_is_not_overruled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(world.labels)
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    models, register = world.models(), learner._register

    def meanwhile() -> str:
        version = register()
        if learner.counts["published"] == 2:
            models.rollback("m")
        return version

    monkeypatch.setattr(learner, "_register", meanwhile)
    with monkeypatch.context() as patch:
        patch.setattr(learner, "_reset", lambda version: (_ for _ in ()).throw(Killed(version)))
        with pytest.raises(Killed) as reset:
            to_the_end(learner)
    assert learner.counts["published"] == 2
    assert models.aliases("m")["champion"] == str(reset.value)


def test_a_champion_of_another_library_pauses_it(world: World) -> None:
    learner = learned(world)
    (world.path / "mine.py").write_text("def score(matrix):\n    return matrix[:, 3] * 0.0 + 0.5\n")
    models = world.models()
    version = models.register("m", "mine:score", service="s", features=list(FILL), fill=FILL).version
    models.promote("m", version)
    world.write(world.labels)
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    assert learner.step() == 0
    assert "only River learns online" in (learner.paused or "")
    assert learner.status()["paused"] == learner.paused
    models.promote("m", "1")
    while learner.step():
        pass
    assert learner.paused is None
    assert learner.counts["learned"] == len(world.labels)


def test_definitions_that_mean_something_else_pause_it_and_nothing_is_published(world: World) -> None:
    learner = learned(world)
    features = (world.path / "features.py").read_text()
    (world.path / "features.py").write_text(features.replace("return 2 * amount", "return 3 * amount"))
    world.write(world.labels)
    learner = learned(world)
    assert learner.counts["published"] == 0
    assert "was defined differently" in (learner.paused or "")
    assert world.models().versions("m") == ["1"]


def test_what_became_infinite_is_not_published_and_the_learner_begins_again_from_the_last_version(world: World) -> None:
    world.write(world.labels)
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    learner.online.model.learn_one(dict.fromkeys(FILL, 1.0), True)
    learner.online.model["LogisticRegression"].intercept = math.nan
    while learner.step():
        pass
    assert learner.counts["resets"] == 1
    assert learner.counts["published"] >= 1
    assert all(math.isfinite(v) for v in learner.online.model["LogisticRegression"].weights.values())


# ---- what is refused, and counted -----------------------------------------------------------------------------------------------------


def test_what_has_no_label_is_dropped_or_negative_as_it_is_told(world: World) -> None:
    world.write(world.labels[::2])
    learner = learned(world)
    missing = len(world.labels) - len(world.labels[::2])
    assert (learner.counts["missing"], learner.counts["learned"]) == (missing, len(world.labels) - missing)
    env = world.env()
    env.offline.delete(checkpoint_key("m"))
    world.models().promote("m", "1")
    learner = learned(world, missing="negative")
    assert (learner.counts["missing"], learner.counts["learned"]) == (missing, len(world.labels))


def test_a_prediction_whose_horizon_has_not_passed_waits(world: World) -> None:
    world.write(world.labels, end=False)
    learner = learned(world)
    assert learner.counts["missing"] == 0
    assert learner.joiner.waiting > 0
    assert learner.joiner.waiting + learner.counts["learned"] == len(world.labels)


def test_labels_that_are_none_and_rows_that_are_not_finite_are_refused(world: World) -> None:
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    lines = file.read_text().splitlines()
    bad = json.loads(lines[1])
    bad["x"][0][0] = {"$float": "inf"}
    nan = json.loads(lines[2])
    nan["x"][0][0] = {"$float": "nan"}
    file.write_text("\n".join([lines[0], json.dumps(bad), json.dumps(nan), *lines[3:]]) + "\n")
    labels = [dict(x) for x in world.labels]
    labels[5]["bad"] = None
    labels[6]["bad"] = "perhaps"
    world.write(labels)
    learner = learned(world)
    assert learner.counts["refused"] == 1  # NaN is null, here as when the model is asked
    assert learner.counts["missing"] == 2
    assert learner.labels.unreadable == 2
    assert all(math.isfinite(float.fromhex(v)) for v in weights(learner.online.model)[0].values())


def test_labels_can_be_joined_by_keys_and_time(world: World) -> None:
    logged = {e["ids"][0]: e for e in entries(world.env().offline, PREDICTIONS)}
    labels = [{**x, "prediction_id": None, "k": logged[x["prediction_id"]]["columns"]["k"][0]} for x in world.labels]
    world.write(sorted(labels, key=lambda x: x["known"]))
    learner = learned(world, join=("k",))
    # Each prediction learns from the last label of its entity that was known within two hours.
    by_key: dict[str, list[Any]] = {}
    for x in labels:
        by_key.setdefault(x["k"], []).append(x)
    model = river_model()
    for e in sorted(logged.values(), key=lambda e: (e["at"]["$time"], e["ids"])):
        at = e["at"]["$time"]
        mine = [x for x in by_key[e["columns"]["k"][0]] if at <= x["at"] and x["known"] <= at + 2 * HOUR]
        row = {n: float(FILL[n] if v is None else v) for n, v in zip(e["features"], e["x"][0], strict=True)}
        model.learn_one(row, max(mine, key=lambda x: x["known"])["bad"])
    assert weights(learner.online.model) == weights(model)


def test_predictions_of_another_model_or_meaning_are_left_alone(world: World) -> None:
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    text = file.read_text().splitlines()
    text[1] = text[1].replace('"model":"m"', '"model":"other"')
    entry = json.loads(text[2])
    text[2] = json.dumps({**entry, "definition": "else"})
    text[3] = json.dumps({**json.loads(text[3]), "ids": [json.loads(text[4])["ids"][0]]})
    file.write_text("\n".join(text) + "\n")
    world.write(world.labels)
    learner = learned(world)
    assert learner.counts["learned"] == len(world.labels) - 3
    assert learner.counts["other_definition"] == 1
    assert learner.joiner.counts["repeated_predictions"] == 1


def test_drift_raises_an_alert_in_the_log_the_status_and_the_metrics(world: World) -> None:
    said: list[tuple[str, str]] = []
    world.write([{**x, "bad": i > 130} for i, x in enumerate(world.labels)])
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({**e, "score": [0.1]} if "score" in e else e) for e in lines) + "\n")
    learner = Learner(world.env(), world.settings(), say=lambda level, text, **_: said.append((level, text)), now=lambda: START)
    while learner.step():
        pass
    learner.close()
    assert learner.counts["drift_on_error"] >= 1
    assert learner.counts["drift_on_score"] == 0
    assert ("warning", "the error drifts") in said
    assert learner.status()["alerts"][0]["drift_on"] == "error"
    metrics = {m.name: m.samples[0].value for m in app.collect(learner.status())}
    assert metrics["tidemill_learner_drift_on_error_total"] >= 1
    assert metrics["tidemill_learner_learned_total"] == len(world.labels)


# ---- the checkpoint and the process ----------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_and_one_of_other_settings_are_refused(world: World) -> None:
    world.write(world.labels)
    learned(world)
    with pytest.raises(ModelError, match="was stopped with"):
        Learner(world.env(), world.settings(horizon=HOUR))
    store = world.env().offline
    data = store.read(checkpoint_key("m")) or b""
    for bad in (data[:-1], b"{}\n", b"", data.replace(b'"format": 1', b'"format": 9')):
        store.write(checkpoint_key("m"), bad)
        with pytest.raises(StoreError):
            Learner(world.env(), world.settings())


def test_labels_of_another_source_or_column_are_not_read_from_where_the_old_ones_ended(world: World) -> None:
    world.write(world.labels[:100], end=False)
    learned(world)
    features = world.path / "features.py"
    text = features.read_text().replace('"bad": bool', '"bad": bool, "worse": bool')
    features.write_text(text + text[text.index("outcomes = ") :].replace("outcomes", "others"))
    with pytest.raises(ModelError, match=r"'labels': 'outcomes'.* is told .*'labels': 'others'.* delete .*checkpoint"):
        Learner(world.env(), world.settings(source=world.env().definitions.source("others")))
    with pytest.raises(ModelError, match=r"'label': 'bad'.* is told .*'label': 'worse'"):
        Learner(world.env(), world.settings(label="worse"))


def test_a_checkpoint_that_does_not_say_which_labels_it_is_of_goes_on(world: World) -> None:
    """As earlier versions wrote it."""
    world.write(world.labels)
    learner = learned(world)
    store = world.env().offline
    found = checkpoints.load(store, "m")
    assert found is not None
    for name in ("labels", "label"):
        del found.state["settings"][name]
    checkpoints.save(store, "m", found)
    again = Learner(world.env(), world.settings())
    assert again.counts["learned"] == learner.counts["learned"]


def test_a_checkpoint_older_than_what_was_published_is_refused(world: World) -> None:
    store = world.env().offline
    world.write(world.labels[:100], end=False)
    learned(world)
    old = store.read(checkpoint_key("m")) or b""
    world.write(world.labels[100:])
    learned(world)
    store.write(checkpoint_key("m"), old)
    learner = Learner(world.env(), world.settings(), now=lambda: START)
    with pytest.raises(ModelError, match="it is an old one"):
        learner.step()


def test_one_process_at_a_time_is_the_learner(world: World) -> None:
    env = world.env()
    with Lease(env.offline, "learner-m", owner="another"), pytest.raises(LeaseError):
        app.once(env, world.settings(), lambda *_, **__: None)


def test_a_store_that_is_away_is_tried_again_from_the_checkpoint(world: World, right: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(world.labels)
    real, calls, said = DirectoryStore.write, [0], []

    def sometimes(self: Any, key: str, data: bytes) -> None:
        if key.endswith("checkpoint"):
            calls[0] += 1
            if calls[0] % 2:
                raise StoreUnavailableError("away")
        real(self, key, data)

    monkeypatch.setattr(DirectoryStore, "write", sometimes)
    done: list[Any] = []

    def seen(learner: Learner) -> None:
        if learner.counts["learned"] == len(world.labels):
            done.append(learner)

    def say(level: str, message: str, **_: Any) -> None:
        said.append(message)

    with contextlib.suppress(StoreUnavailableError):  # of the last checkpoint, when it ends
        app.run(world.env(), world.settings(), say, lambda: bool(done) or len(said) > 200, seen=seen, sleep=lambda _: None)
    assert "waits" in said
    assert weights(done[0].online.model) == right[0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('label = "bad"', 'label = "good"', "no column 'good'"),
        ('label = "bad"', 'label = "bad"\njoin = ["z"]', "no column 'z'"),
        ('label = "bad"', 'label = "bad"\njoin = []', "join is empty"),
        ('horizon = "2h"', "", "has no learner.horizon"),
        ('horizon = "2h"', 'horizon = "0s"', "more than nothing"),
        ('label = "bad"', 'label = "bad"\nmissing = "zero"', "drop or negative"),
        ('label = "bad"', 'label = "bad"\nalias = "previous"', "champion or challenger"),
    ],
)
def test_settings_that_make_no_sense_are_refused(world: World, old: str, new: str, said: str) -> None:
    toml = world.path / "tidemill.toml"
    toml.write_text(toml.read_text().replace(old, new))
    with pytest.raises(DefinitionError, match=said):
        LearnerSettings.of(world.env())


def test_scorers_take_up_what_was_learned(world: World) -> None:
    store = tm.FeatureStore(world.path)
    rows = [{"k": "k1", "amount": 1.5}]
    before = store.score("m", rows, at=START)
    world.write(world.labels)
    learner = learned(world)
    store.scorer.served.look()
    after = store.score("m", rows, at=START)
    store.close()
    assert (before.version, after.version) == ("1", learner.version)
    assert before.score[0] != after.score[0]
