"""The learner: examples a second from logged predictions and labels, against nothing but `learn_one` on rows that are in memory.

20 features, a scaled logistic regression of River; a label for each prediction, out of order. Everything that the process does is in it:
reading both logs, joining, filling in, prequential metrics, two drift detectors, checkpoints and versions. Then where the time goes. All
of it is processor time, which other work on the machine disturbs less.

    python -m benchmarks.learner --examples 50000
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.apps import load
from tidemill.environment import Environment
from tidemill.journals import Journal
from tidemill.learning.learner import Learner
from tidemill.learning.settings import LearnerSettings
from tidemill.models.registry import Models
from tidemill.prediction_log import PREDICTIONS
from tidemill.times import HOUR, SECOND, from_micros, to_micros

WINDOWS = ("1m", "5m", "15m", "1h", "6h", "1d", "2d", "7d", "14d", "30d")
FEATURES = f"""
import tidemill as tm

events = tm.Source("events", schema={{"user": str, "amount": float, "at": tm.Timestamp}}, timestamp="at", path="log/*.jsonl")
v = tm.FeatureView("v", source=events, entity=tm.Entity("user"), aggregations=[
    tm.mean("amount", windows={list(WINDOWS)}), tm.max("amount", windows={list(WINDOWS)})])
s = tm.FeatureService("s", features=[v])
outcomes = tm.Source("outcomes", schema={{"prediction_id": str, "bad": bool, "at": tm.Timestamp}}, timestamp="at", path="labels/*.jsonl")
"""
SETTINGS = """
[project]
name = "learning"
[learner]
model = "m"
labels = "outcomes"
label = "bad"
horizon = "1h"
publish_examples = 10000
publish_every = "1h"
"""
#: Predictions and labels that come in between two looks at the logs.
PORTION = 5_000
START = to_micros("2026-05-01")


def river_model() -> Any:
    """A scaled logistic regression that has learned nothing."""
    from river import linear_model, preprocessing

    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


@dataclass(frozen=True)
class Made:
    """A project; the examples as they are to be learned; entries for the log of predictions, and lines for that of labels."""

    env: Environment
    examples: list[tuple[dict[str, float], bool]]
    predictions: list[dict[str, Any]]
    labels: list[str]

    def log(self, first: int, end: int) -> None:
        """What comes in next."""
        journal = Journal(self.env.offline, PREDICTIONS, most=end - first)
        for entry in self.predictions[first:end]:
            journal.put(entry)
        assert journal.close(timeout=300).written == end - first
        last = [json.dumps({"prediction_id": "end", "bad": False, "at": "2027-01-01T00:00:00Z"})] if end == len(self.labels) else []
        with (self.env.project.directory / "labels" / "1.jsonl").open("a") as file:
            file.writelines(f"{line}\n" for line in [*self.labels[first:end], *last])


def make(folder: Path, count: int) -> Made:
    """So many predictions, and a label for each."""
    (folder / "features.py").write_text(FEATURES)
    (folder / "tidemill.toml").write_text(SETTINGS)
    (folder / "labels").mkdir()
    env = Environment.load(folder)
    env.apply()
    models = Models(env, lambda: START)
    columns = [f"v__{f}" for f in env.definitions.views["v"].features]
    manifest = models.register("m", river_model(), service="s", fill=dict.fromkeys(columns, 0.0))
    models.promote("m", "1")
    dice = random.Random(0)
    examples, labels, predictions = [], [], []
    for i in range(count):
        at, x = START + i * SECOND, [dice.gauss(0, 1) for _ in columns]
        label = x[0] + dice.gauss(0, 1) > 0
        predictions.append(
            {
                "model": "m",
                "version": "1",
                "sha256": manifest.artifact.sha256,
                "service": "s",
                "definition": manifest.definition,
                "at": from_micros(at),
                "columns": {"user": [f"u{i % 1000}"]},
                "features": list(manifest.columns),
                "ids": [f"p{i:09d}"],
                "x": [x],
                "status": [{}],
                "score": [dice.random()],
                "outcome": ["ok"],
                "reason": [None],
            }
        )
        examples.append((dict(zip(manifest.columns, x, strict=True)), label))
        known = at + dice.randrange(HOUR // 2)
        labels.append((known, json.dumps({"prediction_id": f"p{i:09d}", "bad": label, "at": from_micros(known).isoformat()})))
    labels.sort()
    return Made(env, examples, predictions, [line for _, line in labels])


def bare(examples: list[tuple[dict[str, float], bool]]) -> float:
    """CPU seconds for `learn_one` alone."""
    model = river_model()
    begun = time.process_time()
    for row, label in examples:
        model.learn_one(row, label)
    return time.process_time() - begun


def learn(made: Made, watch: Callable[[Learner], None] = lambda _: None) -> float:
    """CPU seconds for a learner that follows the logs, from the first byte read to the last checkpoint."""
    learner = Learner(made.env, LearnerSettings.of(made.env), now=lambda: START, clock=time.process_time)
    watch(learner)
    took, count = 0.0, len(made.examples)
    for first in range(0, count, PORTION):
        made.log(first, min(first + PORTION, count))
        begun = time.process_time()
        while learner.step():
            pass
        took += time.process_time() - begun
    begun = time.process_time()
    learner.keep()
    took += time.process_time() - begun
    assert learner.counts["learned"] == count, learner.status()
    learner.close()
    return took


class Parts:
    """Where the time goes: each part's own, without what it calls of the others."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def __call__(self, learner: Learner) -> None:
        for owner, name, part in (
            (learner.labels, "read", "read and decode labels"),
            (learner.joiner, "predicted", "join"),
            (learner.joiner, "labelled", "join"),
            (learner.online, "row", "fill in and check"),
            (learner.online, "learn", "learn_one"),
            (learner.online, "drifted", "drift"),
            (learner.metrics, "update", "metrics"),
            (learner, "keep", "checkpoints"),
            (learner, "publish", "versions"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name), part))
        learner.predictions.new = self._timed_each(learner.predictions.new, "read and decode predictions")  # type: ignore[method-assign]
        learner.joiner.closed = self._timed_each(learner.joiner.closed, "join")  # type: ignore[method-assign]

    def _timed(self, function: Any, part: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = time.process_time() - begun
                self.seconds[part] = self.seconds.get(part, 0.0) + took - self._inner.pop()
                self._inner[-1] += took

        return call

    def _timed_each(self, function: Any, part: str) -> Any:
        def each(*args: Any) -> Iterator[Any]:
            following = self._timed(function(*args).__next__, part)
            while True:
                try:
                    item = following()
                except StopIteration:
                    return
                yield item

        return each


def main() -> None:
    """Print both rates, the ratio, and the parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=50_000)
    count = parser.parse_args().examples
    load("serving.learner").few_collections()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        made = make(Path(first), count)
        floor = min(bare(made.examples) for _ in range(3))
        took = learn(made)
        parts = Parts()
        whole = learn(make(Path(second), count), parts)
    print(f"learn_one alone: {count / floor:,.0f} examples/s; the learner: {count / took:,.0f} examples/s, {floor / took:.0%} of it")
    parts.seconds["the rest"] = whole - sum(parts.seconds.values())
    shown = sorted(parts.seconds.items(), key=lambda item: -item[1])
    print("where the time goes, in us an example: " + ", ".join(f"{part} {seconds / count * 1e6:.1f}" for part, seconds in shown))


if __name__ == "__main__":
    main()
