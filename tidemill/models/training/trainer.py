"""From a labelled frame to a candidate: training set, time split, model, metrics, a version with its report, and perhaps a promotion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.definitions import resolve_features
from tidemill.errors import ModelError, RequestError, TidemillError
from tidemill.estimators import ESTIMATORS, estimator_factory, need_sklearn, takes_nulls
from tidemill.labelled import Labelled, Names, Split, prepare, split
from tidemill.matrix import matrix
from tidemill.measures import measure
from tidemill.models.journal import CHAMPION
from tidemill.models.loaded import LoadedModel
from tidemill.models.manifest import Fallback, Kind, Manifest
from tidemill.models.meaning import features_of
from tidemill.models.predictor import Matrix
from tidemill.models.training.gates import Gate, Gates, Measured, decide
from tidemill.models.training.report import Report, encode, markdown
from tidemill.models.training.slices import by_slice
from tidemill.times import from_micros

if TYPE_CHECKING:
    from tidemill.client import FeatureStore

NAIVE, CANDIDATE = "naive", "candidate"
_GOLDEN = 50


@dataclass(frozen=True)
class Trained:
    """The candidate's manifest, its report, the gates as they came out, and whether it was promoted."""

    manifest: Manifest
    report: Report
    gates: list[Gate]
    promoted: bool


def train(
    store: FeatureStore,
    name: str,
    frame: Any,
    *,
    service: str,
    label: str = "label",
    label_time: str | None = None,
    split_at: str | float = 0.75,
    model: str | None = None,
    kind: Kind | None = None,
    slices: Sequence[str] = (),
    knowledge: str | None = None,
    freshness: str | None = None,
    threshold: float | None = None,
    fallback: Fallback = None,
    max_missing: int | None = None,
    auto: Gates | None = None,
    by: str | None = None,
    why: str | None = None,
    progress: Callable[[str, int, int], object] = lambda *_: None,
) -> Trained:
    """Train a candidate of the model `name` and register it; with `auto`, promote it where it passes the gates.

    `frame`: keys, `event_timestamp`, request columns, `label` (0 and 1 or booleans, or numbers for a regression), and, if it says so,
    `label_time`, when each label became known; without it a label is known at its row's instant. Rows without a label are left out.
    `split_at`: an instant, or a fraction of the rows by time. Rows before it whose label was known before it are trained on, rows from it
    on are tested on; the version is the model that was tested, not one trained again on everything. `model`: see `tidemill.estimators`.
    `knowledge`, `freshness`: see `FeatureStore.get_historical_features`.

    Raises `RequestError` for a frame that cannot be used, `ModelError` for a model that cannot be kept, and what
    `get_historical_features` raises.
    """
    need_sklearn()
    wanted = resolve_features(service, store.env.definitions)
    rows = prepare(frame, Names(label=label, label_time=label_time, slices=tuple(slices)), wanted, kind).by_time()
    if threshold is not None and rows.kind != "classifier":
        raise RequestError(f"threshold is of a classifier, and {label} holds numbers, for a regression: leave threshold out")
    parts = split(rows, split_at)
    model = model or ESTIMATORS[rows.kind][0]
    untrained = estimator_factory(model, rows.kind, store.env.project.directory)()
    progress("reading features", 0, 3)
    history = store.get_historical_features(rows.asked, service, knowledge=knowledge, freshness=freshness)
    columns = list(features_of(wanted))
    x = matrix(history.to_polars(), columns).values
    progress("training", 1, 3)
    fill = {} if takes_nulls(untrained) else _medians(x[parts.train], columns)
    fitted = _fit(untrained, _filled(x[parts.train], columns, fill), rows.y[parts.train], rows.kind)
    golden = x[parts.test][np.linspace(0, len(parts.test) - 1, min(_GOLDEN, len(parts.test))).astype(np.int64)]
    options: dict[str, Any] = {"threshold": threshold} if rows.kind == "classifier" else {}
    candidate = store.models.prepare(
        name, fitted, service=service, features=columns, fill=fill, fallback=fallback, max_missing=max_missing, golden=golden, **options
    )
    if candidate.loaded.manifest.kind != rows.kind:
        raise ModelError(f"{type(fitted).__name__} is a {candidate.loaded.manifest.kind}, and the labels make a {rows.kind}")
    progress("comparing", 2, 3)
    notes = [f"hypothetical: {history.hypothetical}"] if history.hypothetical else []
    champion, champion_scores = _champion(store, name, rows, parts, x, columns, notes, knowledge, freshness)
    scores: dict[str, Matrix] = {CANDIDATE: candidate.loaded.predict(x[parts.test])}
    if champion_scores is not None:
        scores[CHAMPION] = champion_scores
    scores[NAIVE] = np.full(len(parts.test), rows.y[parts.train].mean())
    y = rows.y[parts.test]
    metrics = {who: measure(rows.kind, y, s) for who, s in scores.items()}
    rival, rival_name = (metrics.get(CHAMPION), f"champion {champion}") if champion else (metrics[NAIVE], "the naive baseline")
    gates = decide(auto or Gates(), rows.kind, y, metrics[CANDIDATE], rival, rival_name)
    scored = {who: s for who, s in scores.items() if who != NAIVE}
    report: Report = {
        "model": name,
        "service": service,
        "kind": rows.kind,
        "estimator": model,
        "split": from_micros(parts.at).isoformat(),
        "rows": {
            "train": len(parts.train),
            "test": len(parts.test),
            "unlabelled": rows.unlabelled,
            "unknown_yet": parts.unknown_yet,
            "mean_label_train": float(rows.y[parts.train].mean()),
            "mean_label_test": float(y.mean()),
        },
        "champion": champion,
        "metrics": metrics,
        "slices": by_slice(rows.kind, y, scored, rows.slices[parts.test] if slices else rows.slices),
        "notes": notes,
        "gates": [asdict(g) for g in gates],
    }
    manifest = store.models.add(
        candidate,
        metrics={n: v for n, v in metrics[CANDIDATE].items() if v is not None},
        data=_data(rows, parts, label, history.knowledge, freshness),
        files={"report.json": encode(report), "report.md": markdown(report).encode()},
        by=by,
        why=why,
    )
    progress("comparing", 3, 3)
    promote = auto is not None and all(g.passed for g in gates)
    if promote:
        said = "; ".join(g.text for g in gates)
        # Over the champion that the gates were about, and no other.
        because = f"{why}: {said}" if why else f"trained with --auto: {said}"
        store.models.promote(name, manifest.version, by=by, why=because, over=champion or "")
    return Trained(manifest, report, gates, promote)


def _champion(
    store: FeatureStore,
    name: str,
    rows: Labelled,
    parts: Split,
    x: Matrix,
    columns: list[str],
    notes: list[str],
    knowledge: str | None,
    freshness: str | None,
) -> tuple[str | None, Matrix | None]:
    """The champion's version, and its scores of the test rows; None where it cannot be compared, which a note explains."""
    version = store.models.aliases(name).get(CHAMPION)
    if version is None:
        notes.append("there is no champion to compare with")
        return None, None
    try:
        loaded = store.models.load(f"{name}@{version}")
        if loaded.manifest.kind != rows.kind:
            raise ModelError(f"it is a {loaded.manifest.kind}, and the labels make a {rows.kind}")
        if set(loaded.manifest.columns) <= set(columns):
            given = x[parts.test][:, [columns.index(c) for c in loaded.manifest.columns]]
        else:
            history = store.get_historical_features(rows.asked[parts.test], loaded.request, knowledge=knowledge, freshness=freshness)
            given = matrix(history.to_polars(), loaded.manifest.columns).values
        scores = _positive(loaded, loaded.predict(given))
        if not np.isfinite(scores).all():
            raise ModelError(f"{int((~np.isfinite(scores)).sum()):,} of its scores are not finite")
    except TidemillError as error:
        notes.append(f"champion {version} could not be compared: {error}")
        return version, None
    seen = str(loaded.manifest.data.get("to", ""))
    if seen > from_micros(parts.at).isoformat():
        notes.append(f"champion {version} was trained on rows up to {seen}, some of which are tested on here: that flatters it")
    return version, scores


def _positive(loaded: LoadedModel, scores: Matrix) -> Matrix:
    """The probability of the label 1, whichever class the champion's score is of."""
    manifest = loaded.manifest
    return 1.0 - scores if manifest.kind == "classifier" and manifest.positive in (0, False) else scores


def _medians(x: Matrix, columns: list[str]) -> dict[str, float]:
    """Each feature's median; 0 where all are null."""
    return {c: float(np.median(v)) if len(v := x[:, i][~np.isnan(x[:, i])]) else 0.0 for i, c in enumerate(columns)}


def _filled(x: Matrix, columns: list[str], fill: dict[str, float]) -> Matrix:
    return np.where(np.isnan(x), [fill[c] for c in columns], x) if fill else x


def _fit(untrained: Any, x: Matrix, y: Matrix, kind: Kind) -> Any:
    try:
        return untrained.fit(x, y.astype(np.int64) if kind == "classifier" else y) or untrained
    except Exception as error:
        raise ModelError(f"{type(untrained).__name__} could not be trained: {type(error).__name__}: {error}") from error


def _data(rows: Labelled, parts: Split, label: str, knowledge: Any, freshness: str | None) -> dict[str, Any]:
    """What the version was trained on, for its manifest."""
    at = rows.at[parts.train]
    return {
        "from": from_micros(int(at.min())).isoformat(),
        "to": from_micros(int(at.max())).isoformat(),
        "rows": len(at),
        "split": from_micros(parts.at).isoformat(),
        "label": label,
        "knowledge": dict(knowledge),
        **({"freshness": freshness} if freshness else {}),
    }


__all__ = ["Measured", "Trained", "train"]
