"""Models that are code: what scores is the code whose text was hashed, and what ends a program does not end a scorer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

import tidemill as tm
from tests.models.conftest import COLUMNS, NOW, fitted
from tests.project import Folder
from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.registry import Models
from tidemill.models.training import trainer

ROW = {"k": "k1", "amount": 2.0}
CODE = "import numpy as np\n\n\ndef score(m):\n    return np.where(m[:, 1] > {limit}, 0.9, 0.1)\n"
FILL = dict.fromkeys(COLUMNS, 0.0)


@pytest.fixture
def imported(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application has imported the module of the model itself: it lies beside it."""
    (folder.path / "mine.py").write_text(CODE.format(limit=10))
    monkeypatch.syspath_prepend(str(folder.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("mine")
    yield module
    assert sys.modules.pop("mine") is module, "the application's own module was taken away"


def test_a_version_is_scored_by_its_own_text_also_where_the_process_has_imported_an_older_one(
    folder: Folder, open_store: Callable[[], tm.FeatureStore], imported: Any
) -> None:
    scorer = open_store()
    scorer.models.register("m", "mine:score", service="s", fill=FILL)
    scorer.models.promote("m", "1")
    assert scorer.score("m", [ROW], at=NOW).score == [0.9]  # 40 events in the last day
    (folder.path / "mine.py").write_text(CODE.format(limit=99))
    scorer.models.register("m", "mine:score", service="s", fill=FILL)
    scorer.models.promote("m", "2")
    scorer.scorer.served.look()
    scores = scorer.score("m", [ROW], at=NOW)
    assert (scores.version, scores.score) == ("2", [0.1])
    assert imported.score.__code__.co_consts != scorer.scorer.served.get("m").now.loaded.predictor._function.__code__.co_consts  # type: ignore[attr-defined]


CLASS = "class Model:\n    def predict(self, m):\n        return m[:, 0] * 0 + {score}\n\n\nmodel = Model()\n"


@pytest.mark.parametrize("path", ["made:Model", "made:model"])
def test_a_class_whose_text_has_changed_is_refused(folder: Folder, open_store: Callable[[], tm.FeatureStore], path: str) -> None:
    (folder.path / "made.py").write_text(CLASS.format(score=0.25))
    store = open_store()
    store.models.register("m", path, service="s", fill=FILL)
    store.models.promote("m", "1")
    (folder.path / "made.py").write_text(CLASS.format(score=0.250001))  # golden rows would not tell
    with pytest.raises(ModelRefusedError, match="is not what it was"):
        open_store().score("m", [ROW], at=NOW)


QUITS = "import sys\nfrom pathlib import Path\n\nif not (Path(__file__).parent / 'key').exists():\n    sys.exit('no key')\n\n\n"


def test_a_module_that_ends_the_program_is_a_refused_version_and_promotions_are_still_seen(
    folder: Folder, open_store: Callable[[], tm.FeatureStore]
) -> None:
    """As one that finds no password on the scorer's machine does."""
    operator, scorer = open_store(), open_store()
    (folder.path / "quits.py").write_text(QUITS + "def score(m):\n    return m[:, 0] * 0 + 0.5\n")
    operator.models.register("m", fitted(), service="s")
    operator.models.promote("m", "1")
    assert scorer.score("m", [ROW], at=NOW).version == "1"
    (folder.path / "key").write_text("")
    operator.models.register("m", "quits:score", service="s", fill=FILL)
    operator.models.promote("m", "2")
    (folder.path / "key").unlink()
    scorer.scorer.served.look()
    assert "SystemExit: no key" in (scorer.score("m", [ROW], at=NOW).warning or "")
    assert open_store().score("m", [ROW], at=NOW).version == "1", "a process that begins now stands in too"
    operator.models.rollback("m")
    scorer.scorer.served.look()
    assert scorer.score("m", [ROW], at=NOW).warning is None


def test_a_model_that_ends_the_program_when_it_is_asked_fails_the_request(folder: Folder, store: tm.FeatureStore) -> None:
    code = "import sys\n\n\ndef score(m):\n    if len(m) == 2:\n        sys.exit('two')\n    return m[:, 0] * 0 + 0.5\n"
    (folder.path / "quits.py").write_text(code)
    store.models.register("m", "quits:score", service="s", fill=FILL)
    store.models.promote("m", "1")
    with pytest.raises(ModelError, match="SystemExit: two"):
        store.score("m", [ROW, ROW], at=NOW)


def test_a_linear_model_that_the_short_form_cannot_be_compared_with_is_told_what_is_wrong_with_it(store: tm.FeatureStore) -> None:
    import numpy as np
    from sklearn.linear_model import LinearRegression

    rows = np.random.default_rng(0).normal(size=(100, len(COLUMNS)))
    with pytest.raises(ModelRefusedError, match="one number a row was expected"):
        store.models.register("m", LinearRegression().fit(rows, rows[:, :2]), service="s", fill=FILL)


def test_what_is_promoted_by_gates_takes_the_place_of_the_champion_that_it_was_compared_with_only(
    store: tm.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone promotes another version while a model is trained."""
    from tests.models.test_training import labelled
    from tidemill.models.training.gates import Gate, Gates

    monkeypatch.setattr(trainer, "decide", lambda *_: [Gate("any", passed=True, text="fine")])
    add = Models.add

    def meanwhile(self: Models, *args: Any, **kwargs: Any) -> Any:
        made = add(self, *args, **kwargs)
        if made.version == "2":
            self.promote("m", "1", by="ann")
        return made

    store.models.register("m", fitted(), service="s")
    monkeypatch.setattr(Models, "add", meanwhile)
    with pytest.raises(ModelError, match="someone else moved an alias"):
        trainer.train(store, "m", labelled(), service="s", label_time="known", auto=Gates())
    assert store.models.aliases("m") == {"champion": "1"}
