"""The learner in bad weather: stores that fail half-way, features that change their meaning, examples that no model takes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm
from tests.learning import world as worlds
from tests.learning.world import COLUMNS, FILL, START, World, river_model, weights
from tidemill.apps import load
from tidemill.errors import DefinitionError, LeaseError, ModelRefusedError, StoreError, StoreUnavailableError
from tidemill.journals import entries
from tidemill.learning import inputs
from tidemill.learning.checkpoint import checkpoint_key
from tidemill.learning.learner import Learner
from tidemill.offline.directory import DirectoryStore
from tidemill.offline.leases import Lease
from tidemill.prediction_log import PREDICTIONS, PredictionLog
from tidemill.times import HOUR, MINUTE, from_micros, to_micros

app = load("serving.learner")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("weather") / "p", count=120)


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    return made.copied(tmp_path / "p")


def learner_of(world: World, **changed: Any) -> Learner:
    return Learner(world.env(), world.settings(**changed), now=lambda: START)


def to_the_end(learner: Learner) -> None:
    while learner.step():
        pass


def say(*_: Any, **__: Any) -> None:
    """Nobody listens."""


def undisturbed(made: World, path: Path, **changed: Any) -> Any:
    """The weights of a learner to which nothing happens."""
    world = made.copied(path)
    world.write(world.labels)
    learner = learner_of(world, **changed)
    to_the_end(learner)
    return weights(learner.online.model)


# ---- meanings -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [COLUMNS[::-1], COLUMNS[1:]], ids=["in another order", "fewer"])
def test_what_was_predicted_of_other_features_and_is_closed_later_is_not_learned(world: World, columns: tuple[str, ...]) -> None:
    learner = learner_of(world)
    world.write(world.labels[:40], end=False)
    to_the_end(learner)
    assert learner.joiner.waiting > 0
    models = world.models()
    fill = dict.fromkeys(columns, 0.0)
    models.register("m", river_model(), service="s", features=columns, fill=fill)
    models.promote("m", "2")
    before, waiting = weights(pickle.loads(models.checked("m", "2")[1])), learner.joiner.waiting
    world.write(world.labels[40:])
    to_the_end(learner)
    assert learner.version == "2"
    assert learner.counts["learned"] + waiting == len(world.labels)
    assert learner.counts["other_definition"] == waiting
    assert weights(learner.online.model) == before


def test_what_was_predicted_of_a_version_that_the_learner_has_not_seen_yet_is_learned_once_it_has(world: World) -> None:
    """A scorer may take up a version, and its journal be read, before the learner looks."""
    models = world.models()
    columns = COLUMNS[::-1]
    models.register("m", river_model(), service="s", features=columns, fill=FILL)
    learner = learner_of(world)
    learner._follow()
    models.promote("m", "2")
    store = tm.FeatureStore(world.path, prediction_log=PredictionLog(world.env().offline))
    scores = store.score("m", [{"k": "k1", "amount": 1.0}], at=START + 3 * HOUR)
    store.close()
    assert scores.version == "2"
    follow = learner._follow
    learner._follow = lambda: None  # type: ignore[method-assign]
    learner.step()
    learner._follow = follow  # type: ignore[method-assign]
    label = {"prediction_id": scores.prediction_id[0], "bad": True, "at": START + 4 * HOUR, "known": START + 4 * HOUR}
    world.write([label])
    to_the_end(learner)
    assert learner.counts["learned"] == 1
    (entry,) = [e for e in entries(world.env().offline, PREDICTIONS) if e["version"] == "2"]
    model = pickle.loads(models.checked("m", "2")[1])
    model.learn_one({n: float(v or 0.0) for n, v in zip(columns, entry["x"][0], strict=True)}, True)
    assert weights(learner.online.model) == weights(model)


# ---- a checkpoint that is lost ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_the_end", [True, False], ids=["all published", "some not"])
def test_a_learner_without_its_checkpoint_learns_nothing_that_the_champion_knows_already(
    made: World, world: World, tmp_path: Path, at_the_end: bool
) -> None:
    """Its errors say: delete the checkpoint to begin from the champion. That has learned from these logs itself."""
    world.write(world.labels)
    learner = learner_of(world)
    to_the_end(learner)
    if at_the_end:
        assert learner.publish()
    learner.close()
    assert learner.counts["published"] == (3 if at_the_end else 2)
    world.env().offline.delete(checkpoint_key("m"))
    again = learner_of(world)
    to_the_end(again)
    assert again.learned == (0 if at_the_end else 20)
    assert weights(again.online.model) == undisturbed(made, tmp_path / "right")
    assert again.joiner.counts["repeated_predictions"] == len(world.labels) - again.learned


# ---- stores that fail half-way ---------------------------------------------------------------------------------------------------------


def failing(real: Callable[..., Any], when: Callable[[str], bool], error: Exception) -> Callable[..., Any]:
    def call(self: Any, key: str, *rest: Any) -> Any:
        if when(key):
            raise error
        return real(self, key, *rest)

    return call


def test_a_journal_that_cannot_be_read_for_a_moment_is_read_later_and_not_taken_for_damaged(
    made: World, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(world.labels)
    with monkeypatch.context() as patch:
        away = StoreUnavailableError("away")
        patch.setattr(DirectoryStore, "read", failing(DirectoryStore.read, lambda key: key.startswith("journals/"), away))
        with pytest.raises(StoreUnavailableError):
            app.once(world.env(), world.settings(), say)
    status = app.once(world.env(), world.settings(), say)
    assert status["counts"]["predictions_damaged"] == 0
    assert weights(learner_of(world).online.model) == undisturbed(made, tmp_path / "right")


def test_a_file_of_a_newer_format_stops_it_and_is_not_passed_over(world: World) -> None:
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 2'))
    world.write(world.labels)
    with pytest.raises(StoreError, match="has format 2"):
        app.once(world.env(), world.settings(), say)
    file.write_text(text)
    assert app.once(world.env(), world.settings(), say)["counts"]["learned"] == len(world.labels)


@pytest.mark.parametrize("how", ["once", "run"])
def test_what_was_read_when_a_step_failed_is_read_again(
    made: World, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The labels have been read, their positions have moved on, and then the journal of predictions fails."""
    monkeypatch.setattr(inputs, "ROWS", 30)
    world.write(world.labels)
    new, calls = inputs.PredictionFiles.new, [0]

    def sometimes(self: inputs.PredictionFiles) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise StoreError("no permission")
        return new(self)

    monkeypatch.setattr(inputs.PredictionFiles, "new", sometimes)
    more = {"stop": lambda: False, "sleep": lambda _: None} if how == "run" else {}
    with pytest.raises(StoreError, match="no permission"):
        getattr(app, how)(world.env(), world.settings(), say, **more)
    status = app.once(world.env(), world.settings(), say)
    assert status["counts"]["learned"] == len(world.labels)
    assert weights(learner_of(world).online.model) == undisturbed(made, tmp_path / "right")


# ---- the alias, while it works ---------------------------------------------------------------------------------------------------------


def test_a_champion_of_another_library_that_comes_while_it_learns_pauses_it_there_and_after_a_restart(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.path / "mine.py").write_text("def score(matrix):\n    return matrix[:, 3] * 0.0 + 0.5\n")
    models = world.models()
    models.register("m", "mine:score", service="s", features=list(FILL), fill=FILL)
    world.write(world.labels)
    learner = Learner(world.env(), world.settings(), now=lambda: START, checkpoint_seconds=0.0)
    register = learner._register

    def meanwhile() -> str:
        version = register()
        models.promote("m", "2")
        return version

    monkeypatch.setattr(learner, "_register", meanwhile)
    to_the_end(learner)
    learner.close()
    assert "only River learns online" in (learner.paused or "")
    assert learner.counts["learned"] == 50, "it went on learning while it was paused"
    again = learner_of(world)
    to_the_end(again)
    assert "only River learns online" in (again.paused or "")
    assert world.models().versions("m") == ["1", "2", "3"]


@pytest.mark.parametrize("given_back", [True, False], ids=["which ended", "which is at it still"])
def test_a_learner_that_slept_for_longer_than_its_lease_never_writes_over_what_another_one_kept(
    world: World, monkeypatch: pytest.MonkeyPatch, given_back: bool
) -> None:
    """What it knows is old, also where it gets the lease again."""
    world.write(world.labels[:60], end=False)
    now, steps, kept, said = [0.0], [0], [b""], []
    monkeypatch.setattr(app, "Lease", lambda *a, **k: Lease(*a, **k, clock=lambda: now[0], owner="sleeper"))
    monkeypatch.setattr(app.time, "monotonic", lambda: now[0])

    def seen(learner: Learner) -> None:
        steps[0] += 1
        if steps[0] > 1:
            return
        learner.keep()
        learner._dirty = True
        now[0] = 1e6
        world.write(world.labels[60:])
        lease = Lease(world.env().offline, "learner-m", seconds=60, owner="other", clock=lambda: now[0])
        lease.acquire()
        other = learner_of(world)
        to_the_end(other)
        other.publish()
        other.close()
        kept[0] = world.env().offline.read(checkpoint_key("m")) or b""
        if given_back:
            lease.release()

    def asked(level: str, message: str, **_: Any) -> None:
        said.append(message)

    def work() -> None:
        app.run(world.env(), world.settings(), asked, lambda: steps[0] > 3, seen=seen, sleep=lambda _: None)

    if given_back:
        work()
        assert "begins at the checkpoint again" in said
    else:
        with pytest.raises(LeaseError, match="held by other"):
            work()
    assert world.env().offline.read(checkpoint_key("m")) == kept[0]
    again = learner_of(world)
    to_the_end(again)
    assert again.counts["learned"] == len(world.labels)
    assert world.models().aliases("m")["champion"] == again.version


# ---- versions of River -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", ["from a version", "from its checkpoint"])
def test_a_pickle_of_another_river_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch, begins: str) -> None:
    if begins == "from its checkpoint":
        world.write(world.labels)
        app.once(world.env(), world.settings(), say)

    def never(*_: Any) -> Any:
        raise AssertionError("the pickle was read")

    monkeypatch.setattr("tidemill.models.frameworks.metadata.version", lambda name: "0.99.0" if name == "river" else "1.0")
    monkeypatch.setattr(pickle, "loads", never)
    with pytest.raises(ModelRefusedError, match=r"river 0\.2"):
        learner_of(world)


# ---- what no model was asked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["drop", "negative"])
def test_a_row_that_fell_back_is_not_learned_for_its_features_were_not_known(
    world: World, monkeypatch: pytest.MonkeyPatch, missing: Any
) -> None:
    """While the store is away every feature is null: filled in, that would be taught with true labels."""
    at = START + 3 * HOUR
    store = tm.FeatureStore(world.path, prediction_log=PredictionLog(world.env().offline))
    rows = [{"k": f"k{i}", "amount": 1.0} for i in range(5)]

    def away(*_: Any) -> Any:
        raise StoreUnavailableError("away")

    known = store.score("m", rows, at=at)
    with monkeypatch.context() as patch:
        patch.setattr(store.env.online, "read", away)
        fell = store.score("m", rows, at=at + MINUTE, fallback=0.5)
    assert fell.status == ["fallback"] * 5
    store.close()
    world.write(world.labels, end=False)
    ids = [*known.prediction_id, *fell.prediction_id]
    world.write([{"prediction_id": id, "bad": True, "at": at + HOUR, "known": at + HOUR} for id in ids])
    learner = learner_of(world, missing=missing)
    to_the_end(learner)
    assert learner.counts["learned"] == len(world.labels) + 5
    assert learner.metrics.examples == len(world.labels) + 5
    assert learner.counts["fallback"] == 5


# ---- examples that no model takes ------------------------------------------------------------------------------------------------------


def test_an_example_at_which_the_model_fails_is_refused_and_the_next_ones_are_learned(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from river import compose

    learn, seen = compose.Pipeline.learn_one, [0]

    def sometimes(self: Any, row: dict[str, float], label: Any) -> None:
        seen[0] += 1
        if seen[0] == 3:
            raise OverflowError("(34, 'Numerical result out of range')")
        learn(self, row, label)

    monkeypatch.setattr(compose.Pipeline, "learn_one", sometimes)
    world.write(world.labels)
    learner = learner_of(world)
    to_the_end(learner)
    assert (learner.counts["refused"], learner.counts["learned"]) == (1, len(world.labels) - 1)


def test_a_vector_of_another_length_is_refused(world: World) -> None:
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    lines = file.read_text().splitlines()
    short = json.loads(lines[1])
    short["x"][0] = short["x"][0][:2]
    null = json.loads(lines[2])
    null["x"][0] = [None, 1.0]
    file.write_text("\n".join([lines[0], json.dumps(short), json.dumps(null), *lines[3:]]) + "\n")
    world.write(world.labels)
    learner = learner_of(world)
    to_the_end(learner)
    assert (learner.counts["refused"], learner.counts["learned"]) == (2, len(world.labels) - 2)


# ---- joins -----------------------------------------------------------------------------------------------------------------------------


def test_a_join_by_a_column_that_no_prediction_has_is_refused_at_once(world: World) -> None:
    settings = replace(world.settings(), join=("k", "prediction_id"))
    Learner(world.env(), settings, now=lambda: START)
    features = world.path / "features.py"
    features.write_text(features.read_text().replace('"k": str, "bad"', '"k": str, "flight": int, "bad"'))
    with pytest.raises(DefinitionError, match=r"joins by 'flight'.*'amount', 'k'"):
        Learner(world.env(), world.settings(join=("flight",)), now=lambda: START)


def test_a_label_whose_key_is_null_is_of_no_prediction(world: World) -> None:
    at = START + 3 * HOUR
    store = tm.FeatureStore(world.path, prediction_log=PredictionLog(world.env().offline))
    store.score("m", [{"k": "k1", "amount": None}], at=at)
    store.close()
    features = world.path / "features.py"
    features.write_text(features.read_text().replace('"k": str, "bad"', '"amount": float, "bad"'))
    world.write([{"amount": None, "bad": True, "at": at + MINUTE, "known": at + MINUTE}])
    learner = learner_of(world, join=("amount",))
    to_the_end(learner)
    assert learner.counts["learned"] == 0
    assert learner.joiner.counts["unmatched"] == 1


FLIGHTS = """
@tm.on_demand(inputs=[tm.Request(flight=int, due=tm.Timestamp, price=float)])
def twice(flight, due, price):
    return 2 * price


s = tm.FeatureService("s", features=[v, twice])
"""


@pytest.fixture
def flights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Predictions that are named by an int, an instant and a float."""
    old = worlds.DEFINITIONS
    twice = old[old.index("@tm.on_demand") : old.index("outcomes")]
    labels = '"flight": int, "due": tm.Timestamp, "price": float, "bad"'
    monkeypatch.setattr(worlds, "DEFINITIONS", old.replace(twice, FLIGHTS).replace('"k": str, "bad"', labels))
    return World(tmp_path / "p", count=0)


DUE = "2026-05-02T00:00:00+00:00"


@pytest.mark.parametrize(
    "given",
    [
        {"due": DUE},
        {"due": "2026-05-02"},
        {"due": to_micros(DUE)},
        {"due": from_micros(to_micros(DUE))},
        {"due": "2026-05-02T02:00:00+02:00"},
        {"price": 0},
        {"price": -0.0},
        {"flight": 7.0},
    ],
    ids=str,
)
def test_a_value_finds_its_label_in_whatever_form_a_request_brought_it(flights: World, given: dict[str, Any]) -> None:
    store = tm.FeatureStore(flights.path, prediction_log=PredictionLog(flights.env().offline))
    store.score("m", [{"k": "k1", "flight": 7, "due": DUE, "price": 0.0, **given}], at=START)
    store.close()
    flights.write([{"flight": 7, "due": DUE, "price": 0.0, "bad": True, "at": START + MINUTE, "known": START + MINUTE}])
    learner = learner_of(flights, join=("flight", "due", "price"))
    to_the_end(learner)
    assert learner.counts["learned"] == 1
    one = learner_of(flights, join=(next(iter(given)),))
    to_the_end(one)
    assert one.counts["learned"] == 1


def test_text_that_no_label_can_have_is_of_no_label_and_does_not_stop_the_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a surrogate pair: Python has such text, and neither logs nor checkpoints can hold it."""
    changed = worlds.DEFINITIONS.replace("Request(amount=float)", "Request(amount=float, flight=str)")
    changed = changed.replace("(amount)", "(amount, flight)").replace('"k": str, "bad"', '"flight": str, "bad"')
    monkeypatch.setattr(worlds, "DEFINITIONS", changed)
    world = World(tmp_path / "p", count=0)
    store = tm.FeatureStore(world.path, prediction_log=PredictionLog(world.env().offline))
    for flight in ("\ud800", "f"):
        store.score("m", [{"k": "k1", "amount": 1.0, "flight": flight}], at=START)
    store.close()
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    head, *lines = file.read_text().splitlines()
    bad = {**json.loads(lines[0]), "ids": ["\ud800"]}
    file.write_text("\n".join([json.dumps({**json.loads(head), "entries": 3}), *lines, json.dumps(bad)]) + "\n")
    world.write([{"flight": "f", "bad": True, "at": START + MINUTE, "known": START + MINUTE}], end=False)
    learner = learner_of(world, join=("flight",))
    to_the_end(learner)
    learner.keep()
    assert learner.joiner.waiting == 2
    assert learner.predictions.damaged == 1
    world.write([])
    again = learner_of(world, join=("flight",))
    to_the_end(again)
    assert (again.counts["learned"], again.counts["missing"]) == (1, 1)


def test_an_epoch_number_is_read_in_the_unit_of_its_column(flights: World) -> None:
    features = flights.path / "features.py"
    features.write_text(features.read_text().replace("flight=int, due=tm.Timestamp,", 'flight=int, due=tm.Timestamp("ms"),'))
    flights.env().apply()
    models = flights.models()
    models.register("m", river_model(), service="s", fill=FILL)
    models.promote("m", "2")
    store = tm.FeatureStore(flights.path, prediction_log=PredictionLog(flights.env().offline))
    store.score("m", [{"k": "k1", "flight": 7, "due": to_micros(DUE) // 1000, "price": 0.0}], at=START)
    store.close()
    flights.write([{"due": DUE, "bad": True, "at": START + MINUTE, "known": START + MINUTE}])
    learner = learner_of(flights, join=("due",))
    to_the_end(learner)
    assert learner.counts["learned"] == 1


def test_a_join_by_a_column_that_labels_have_in_another_type_is_refused_at_once(flights: World) -> None:
    features = flights.path / "features.py"
    features.write_text(features.read_text().replace('"flight": int, "due"', '"flight": str, "due"'))
    with pytest.raises(DefinitionError, match=r"'flight', which is of type int in predictions, and of type str in labels of 'outcomes'"):
        learner_of(flights, join=("flight",))


def test_an_entry_that_is_none_costs_nothing_but_itself(world: World) -> None:
    """Such as one of a version that reads another service, without the column that labels are joined by."""
    (file,) = (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl")
    lines = file.read_text().splitlines()
    other = json.loads(lines[3])
    del other["columns"]["k"]
    file.write_text("\n".join([*lines[:3], json.dumps(other), "{", *lines[5:]]) + "\n")
    learner = learner_of(world, join=("k",))
    to_the_end(learner)
    assert learner.predictions.damaged == 2
    assert learner.joiner.waiting == len(world.labels) - 2
