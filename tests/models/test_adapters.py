"""Each kind of model, there and back: what is registered scores as what was fitted."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tidemill as tm
from tests.models.conftest import COLUMNS, fitted
from tests.project import Folder
from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.adapters.linear import LinearPredictor
from tidemill.models.adapters.sklearn import SklearnPredictor
from tidemill.models.predictor import Matrix

RNG = np.random.default_rng(3)
X = RNG.normal(size=(400, len(COLUMNS))) * 2 + 1
Y = (X[:, 0] - X[:, 3] + RNG.normal(size=400) > 1).astype(int)
TARGET = X[:, 0] * 3 - X[:, 3] + RNG.normal(size=400)
NAMES = dict.fromkeys(COLUMNS, 0.0)
FILL = dict.fromkeys(COLUMNS, 0.5)


def with_nulls() -> Matrix:
    rows = X[:100].copy()
    rows[RNG.random(rows.shape) < 0.2] = math.nan
    return rows


def lightgbm_model(kind: str = "classifier") -> Any:
    import lightgbm

    made = lightgbm.LGBMClassifier if kind == "classifier" else lightgbm.LGBMRegressor
    return made(n_estimators=20, verbose=-1, n_jobs=1).fit(X, Y if kind == "classifier" else TARGET)


def river_model() -> Any:
    from river import linear_model, preprocessing

    model = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    for row, label in zip(X.tolist(), Y.tolist(), strict=True):
        model.learn_one(dict(zip(COLUMNS, row, strict=True)), bool(label))
    return model


def onnx_model(estimator: Any, **options: Any) -> Any:
    from skl2onnx import to_onnx

    return to_onnx(estimator, X[:1].astype(options.pop("type", np.float32)), options=options or None)


def sklearn_models() -> dict[str, Any]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    return {
        "pipeline": fitted(),
        "boosting": HistGradientBoostingClassifier(max_iter=10).fit(X, Y),
        "forest": RandomForestClassifier(n_estimators=5).fit(X, Y),
        "trees": GradientBoostingClassifier(n_estimators=5).fit(np.nan_to_num(X), Y),
        "calibrated": CalibratedClassifierCV(LogisticRegression()).fit(X, Y),
    }


def predictor(store: tm.FeatureStore, model: Any, **options: Any) -> Any:
    """The model, registered, and loaded by another process's registry."""
    manifest = store.models.register("m", model, service="s", **options)
    return tm.FeatureStore(store.env.project.directory).models.load(f"m@{manifest.version}")


@pytest.mark.parametrize("name", ["pipeline", "boosting", "forest", "trees", "calibrated"])
def test_scikit_learn_comes_back_as_it_was(store: tm.FeatureStore, name: str) -> None:
    model = sklearn_models()[name]
    takes_nulls = name in ("pipeline", "boosting", "forest")
    loaded = predictor(store, model, fill=None if takes_nulls else FILL)
    rows = with_nulls() if takes_nulls else X[:100]
    assert np.abs(loaded.predict(rows) - model.predict_proba(rows)[:, 1]).max() <= 1e-12
    assert loaded.manifest.classes == (0, 1)
    assert isinstance(loaded.predictor, LinearPredictor if name == "pipeline" else SklearnPredictor)


@pytest.mark.parametrize("positive", ["late", "early"])
def test_the_score_is_the_probability_of_the_positive_class_whatever_its_place(store: tm.FeatureStore, positive: str) -> None:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression().fit(X, np.where(Y == 1, "late", "early"))
    loaded = predictor(store, model, positive=positive, fill=FILL)
    assert (loaded.manifest.classes, loaded.manifest.positive) == (("early", "late"), positive)
    assert np.abs(loaded.predict(X) - model.predict_proba(X)[:, ["early", "late"].index(positive)]).max() <= 1e-12
    assert loaded.manifest.label(0.9) == positive != loaded.manifest.label(0.1)


def test_regressions_score_numbers_and_have_no_classes(store: tm.FeatureStore) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import LinearRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for model in (HistGradientBoostingRegressor(max_iter=5), LinearRegression(), make_pipeline(StandardScaler(), Ridge())):
        loaded = predictor(store, model.fit(X, TARGET), fill=FILL)
        assert np.abs(loaded.predict(X) - model.predict(X)).max() <= 1e-12 * np.abs(TARGET).max()
        assert (loaded.manifest.kind, loaded.manifest.classes, loaded.manifest.label(3.0)) == ("regressor", None, None)


def test_the_short_form_is_used_only_where_it_was_seen_to_be_the_same(store: tm.FeatureStore) -> None:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    class Shifted(LogisticRegression):
        pass

    short = [LogisticRegression(), make_pipeline(SimpleImputer(strategy="median"), StandardScaler(with_mean=False), LogisticRegression())]
    short.append(make_pipeline(SimpleImputer(add_indicator=True), StandardScaler(), LogisticRegression()))
    general = [make_pipeline(SimpleImputer(missing_values=-1.0), LogisticRegression()), make_pipeline(MinMaxScaler(), LogisticRegression())]
    nulls = with_nulls()
    for model in short + general:
        imputes = "simpleimputer" in getattr(model, "named_steps", {}) and model not in general
        given = nulls if imputes else X[:100]
        loaded = predictor(store, model.fit(given, Y[:100]), fill=None if imputes else FILL)
        assert isinstance(loaded.predictor, LinearPredictor) == (model in short), model
        assert np.abs(loaded.predict(given) - model.predict_proba(given)[:, 1]).max() <= 1e-12


def test_an_estimator_fitted_on_a_frame_gets_its_columns_by_name_in_its_own_order(store: tm.FeatureStore) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    order = ["ratio", "v__x_max_1d", "v__count_1h"]
    frame = pd.DataFrame(X[:, :3], columns=order)
    model = make_pipeline(ColumnTransformer([("a", MinMaxScaler(), ["v__count_1h"])], remainder="passthrough"), LogisticRegression())
    loaded = predictor(store, model.fit(frame, Y), fill=dict.fromkeys(order, 0.5))
    assert loaded.manifest.columns == tuple(order)
    assert np.abs(loaded.predict(X[:, :3]) - model.predict_proba(frame)[:, 1]).max() <= 1e-12
    store.models.promote("m", "1")
    scores = store.score("m", [{"k": "k1", "amount": 2.0}])
    given = pd.DataFrame({c: scores.features.columns[c] for c in order})
    assert scores.score == pytest.approx(model.predict_proba(given)[:, 1].tolist(), abs=1e-12)


@pytest.mark.parametrize("live", [True, False])
def test_lightgbm_comes_back_as_it_was_from_memory_and_from_its_text(store: tm.FeatureStore, tmp_path: Path, live: bool) -> None:
    model = lightgbm_model()
    model.booster_.save_model(tmp_path / "model.txt")
    loaded = predictor(store, model if live else tmp_path / "model.txt")
    rows = with_nulls()
    assert np.array_equal(loaded.predict(rows), model.booster_.predict(rows))
    assert loaded.predict(rows[:0]).shape == (0,)


def test_lightgbm_regressions_and_its_first_class(store: tm.FeatureStore) -> None:
    model = lightgbm_model("regressor")
    assert np.array_equal(predictor(store, model).predict(X), model.predict(X, validate_features=False))
    classifier = lightgbm_model()
    assert np.array_equal(predictor(store, classifier, positive=0).predict(X), 1.0 - classifier.booster_.predict(X))


@pytest.mark.parametrize("options", [{}, {"zipmap": False}, {"zipmap": False, "type": np.float64}])
def test_onnx_comes_back_as_it_was(store: tm.FeatureStore, options: dict[str, Any]) -> None:
    from sklearn.linear_model import LogisticRegression

    estimator = LogisticRegression().fit(X, Y)
    loaded = predictor(store, onnx_model(estimator, **options), fill=FILL)
    exact = 1e-12 if "type" in options else 1e-6
    assert np.abs(loaded.predict(X) - estimator.predict_proba(X)[:, 1]).max() <= exact
    assert loaded.manifest.classes == (0, 1)
    first = predictor(store, onnx_model(estimator, **options), fill=FILL, positive=0)
    assert np.abs(first.predict(X) - estimator.predict_proba(X)[:, 0]).max() <= exact
    assert loaded.predict(X[:0]).shape == (0,)


def test_onnx_from_a_file_and_regressions(store: tm.FeatureStore, tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    estimator = LinearRegression().fit(X, TARGET)
    (tmp_path / "model.onnx").write_bytes(onnx_model(estimator).SerializeToString())
    loaded = predictor(store, tmp_path / "model.onnx", fill=FILL)
    assert loaded.manifest.kind == "regressor"
    assert np.abs(loaded.predict(X) - estimator.predict(X)).max() <= 1e-4


def test_river_comes_back_as_it_was_and_is_asked_row_by_row(store: tm.FeatureStore) -> None:
    model = river_model()
    loaded = predictor(store, model, fill=FILL)
    expected = [model.predict_proba_one(dict(zip(COLUMNS, row, strict=True)))[True] for row in X.tolist()]
    assert loaded.predict(X).tolist() == expected
    before = loaded.predict(X[:1]).tolist()
    loaded.predict(with_nulls())
    assert loaded.predict(X[:1]).tolist() == before
    assert np.isnan(loaded.predictor.predict(with_nulls())).any()  # nothing filled in: not shown to the model


def test_river_models_need_something_to_fill_in_for_nulls(store: tm.FeatureStore) -> None:
    with pytest.raises(ModelRefusedError, match=r"scores nan on a golden row.*v__count_1h=null.*say what to fill in.*fill="):
        store.models.register("m", river_model(), service="s")


def test_a_river_model_that_has_learned_nothing_cannot_be_registered(store: tm.FeatureStore) -> None:
    from river import tree

    with pytest.raises(ModelRefusedError, match="scores nan on a golden row"):
        store.models.register("m", tree.HoeffdingTreeClassifier(), service="s", fill=FILL)


def test_callables_are_found_beside_the_project_and_may_be_functions_objects_or_classes(folder: Folder, store: tm.FeatureStore) -> None:
    (folder.path / "made.py").write_text(
        "import numpy as np\ndef score(x):\n    return np.full(len(x), 0.25)\n"
        "class Model:\n    def predict(self, x):\n        return [0.5] * len(x)\nmodel = Model()\n"
    )
    for path, expected in (("made:score", 0.25), ("made:Model", 0.5), ("made:model", 0.5)):
        assert predictor(store, path).predict(X[:2]).tolist() == [expected] * 2
    assert "made" not in sys.modules


def test_a_callable_whose_code_has_changed_is_refused(folder: Folder, store: tm.FeatureStore) -> None:
    file = folder.path / "made.py"
    file.write_text("def score(x):\n    return [0.25] * len(x)\n")
    store.models.register("m", "made:score", service="s")
    file.write_text("def score(x):\n    return [0.75] * len(x)\n")
    with pytest.raises(ModelRefusedError, match="the code of made:score is not what it was"):
        store.models.load("m@1")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere:score", "cannot be imported"),
        ("made:other", "cannot be imported"),
        ("made:number", "neither be called"),
        ("made:", "import path"),
    ],
)
def test_callables_that_are_none_are_refused(folder: Folder, store: tm.FeatureStore, path: str, said: str) -> None:
    (folder.path / "made.py").write_text("number = 5\n")
    with pytest.raises(ModelError, match=said):
        store.models.register("m", path, service="s")


def wrong_models() -> list[tuple[str, Callable[[], Any], dict[str, Any], str]]:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    three = np.arange(400) % 3
    return [
        ("not a model", object, {}, "no model that tidemill knows"),
        ("not fitted", LogisticRegression, {}, "fit it first"),
        ("no probabilities", lambda: LinearSVC().fit(X, Y), {}, "gives no probabilities"),
        ("three classes", lambda: LogisticRegression().fit(X, three), {}, "tells two classes apart; this one has 3"),
        ("other width", lambda: LogisticRegression().fit(X[:, :3], Y), {}, "fitted on 3 columns, and these are 5 features"),
        ("takes no nulls", lambda: LogisticRegression().fit(X, Y), {}, r"m scores nan on a golden row.*say what to fill in for nulls"),
        ("unknown positive", fitted, {"positive": "late"}, "positive is 'late', which is none of"),
        ("threshold", fitted, {"threshold": 5}, "threshold is a probability"),
        ("regression's", fitted, {"kind": "regressor"}, "is a classifier, and was said to be a regressor"),
        ("unknown fill", fitted, {"fill": {"v__count": 1.0}}, "fill names 'v__count'.*did you mean"),
        ("unknown feature", fitted, {"features": [*COLUMNS[:4], "v__count_9h"]}, "reads 'v__count_9h'"),
        ("twice", fitted, {"features": [*COLUMNS[:4], COLUMNS[0]]}, "name a column twice"),
        ("fallback", fitted, {"fallback": math.inf}, "fallback is a finite score"),
        ("takes no nulls", lambda: CalibratedClassifierCV(LogisticRegression()).fit(X, Y), {}, "m failed: ValueError.*fill="),
        ("fills nothing", fitted, {"fill": {"ratio": math.nan}}, "fill of 'ratio' is nan"),
        ("golden", fitted, {"golden": np.zeros((1, 4))}, r"golden rows have the shape \(1, 4\)"),
        ("a pickle", lambda: Path("model.pkl"), {}, "pickle, which runs code"),
        ("no such file", lambda: Path("model.skops"), {}, "cannot be read: No such file"),
        ("unknown file", lambda: Path("model.h5"), {}, "a model's file ends in"),
        ("name", fitted, {"name": "a/b"}, "a model's name"),
    ]


@pytest.mark.parametrize("number", range(20))
def test_what_cannot_be_registered_says_what_to_do_and_leaves_nothing(store: tm.FeatureStore, number: int) -> None:
    what, make, options, said = wrong_models()[number]
    with pytest.raises(tm.errors.TidemillError, match=rf"(?s){said}"):
        store.models.register(options.pop("name", "m"), make(), service="s", **options)
    assert store.models.names() == [], what


def test_files_that_are_no_models_are_refused(store: tm.FeatureStore, tmp_path: Path) -> None:
    for suffix in ("skops", "onnx", "txt"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"tree\nthis is nothing")
        with pytest.raises(ModelError, match=r"(cannot be read|no model in)"):
            store.models.register("m", tmp_path / f"bad.{suffix}", service="s")


def test_types_that_are_not_allowed_are_refused_until_the_project_says_so(folder: Folder, store: tm.FeatureStore) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    model = make_pipeline(FunctionTransformer(np.nan_to_num), LogisticRegression()).fit(X, Y)
    with pytest.raises(ModelRefusedError, match=r'not allowed here: numpy.nan_to_num.*\[models\] trusted = \["numpy.nan_to_num"\]'):
        store.models.register("m", model, service="s")
    with (folder.path / "tidemill.toml").open("a") as settings:
        settings.write('[models]\ntrusted = ["numpy.nan_to_num"]\n')
    trusting = tm.FeatureStore(folder.path)
    assert trusting.models.register("m", model, service="s").version == "1"
    with pytest.raises(ModelRefusedError, match="not allowed here"):  # whoever loads it decides, not who registered it
        store.models.load("m@1")


@pytest.mark.parametrize(
    "feature", ['tm.last("k", windows=["1d"], name="text")', 'tm.last("at", windows=["1d"])', 'tm.last_n("x", 3, windows=["1d"])']
)
def test_features_that_are_no_numbers_are_refused(folder: Folder, open_store: Callable[[], tm.FeatureStore], feature: str) -> None:
    folder.write((folder.path / "features.py").read_text().replace('tm.max("x", windows=["1d"])', feature))
    with pytest.raises(ModelError, match="a model is given float64 only"):
        open_store().models.register("m", fitted(), service="s")


def test_reading_features_and_callable_models_imports_no_library_of_models(folder: Folder, store: tm.FeatureStore) -> None:
    (folder.path / "made.py").write_text("def score(x):\n    return [0.25] * len(x)\n")
    store.models.register("m", "made:score", service="s")
    store.models.promote("m", "1")
    program = (
        "import sys, tidemill as tm\n"
        f"store = tm.FeatureStore({str(folder.path)!r})\n"
        "assert store.score('m', [{'k': 'k1', 'amount': 1.0}], at='2026-05-01T12:00:00').score == [0.25]\n"
        "store.close()\n"
        # Not SciPy: Numba imports it where it is there.
        "print(sorted({'sklearn', 'skops', 'onnxruntime', 'lightgbm', 'river', 'pandas'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
