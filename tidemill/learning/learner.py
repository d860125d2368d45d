"""The learner of one model: what it reads, learns, keeps and publishes. One process at a time runs it; see `serving/learner.py`.

Everything that it knows is in its checkpoint, model and positions in one file. Killed at any instant it begins at the checkpoint, and
because the order of examples does not depend on when they were read, it ends with the same model to the bit.

It publishes versions to the registry and moves the alias, but only from where it put it or began: if somebody else has moved it meanwhile,
above all back, the learner lets go of what it has learned since, and goes on from the version that is in force now.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from tidemill.environment import Environment
from tidemill.errors import ModelError, ModelRefusedError, NotFoundError
from tidemill.learning import checkpoint as checkpoints
from tidemill.learning.inputs import LabelLog, Predictions
from tidemill.learning.join import Example, Joiner
from tidemill.learning.prequential import Prequential
from tidemill.learning.river import OnlineModel, RefusedError
from tidemill.learning.settings import LearnerSettings
from tidemill.models import frameworks
from tidemill.models.journal import CHAMPION
from tidemill.models.registry import Models
from tidemill.models.scores import FALLBACK
from tidemill.times import from_micros

#: How to say something: a level (info, warning), a message, and fields.
Say = Callable[..., object]
#: Who moves aliases, in the journal of the model.
_BY = "tidemill learn"
#: In seconds, between two looks at what a client of a topic has fetched.
_FETCH = 0.01
#: Alerts that the status lists.
_ALERTS = 20
COUNTS = ("learned", "missing", "fallback", "refused", "other_definition", "published", "resets", "drift_on_error", "drift_on_score")


def status_key(name: str) -> str:
    """Where a learner says how it goes."""
    return f"learners/{name}/status.json"


class Learner:
    """See the module's text. `guard` is called before anything is written, and raises where another process is the learner by now.

    `clock` gives monotonic seconds, `now` wall-clock UTC microseconds. Raises what loading a version raises.
    """

    def __init__(
        self,
        env: Environment,
        settings: LearnerSettings,
        *,
        say: Say = lambda *_, **__: None,
        checkpoint_seconds: float = 10.0,
        guard: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.settings = settings
        self.online: OnlineModel
        self._env, self._say, self._clock, self._now = env, say, clock, now
        self._models = Models(env, now)
        self._seconds, self._guard = checkpoint_seconds, guard
        self.joiner = Joiner(settings.horizon, settings.lateness, settings.by_id)
        self.predictions, self.labels = Predictions(env, settings), LabelLog(env, settings)
        self.counts = dict.fromkeys(COUNTS, 0)
        self.alerts: list[dict[str, Any]] = []
        #: Why nothing is learned, if so.
        self.paused: str | None = None
        self._dirty = self._halfway = False
        self._kept_at = self._published_at = clock()
        found = checkpoints.load(env.offline, settings.model)
        if found is None:
            self._begin()
        else:
            self._restore(found)

    # ---- where it begins --------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """From the version in force, and all logs; of a version that a learner has published, what comes after the last it knew of."""
        self.id = secrets.token_hex(8)
        self._n = self._models.journal(self.settings.model).newest().n
        aliases = self._models.aliases(self.settings.model)
        self.version = aliases.get(self.settings.alias) or self._models.resolve(f"{self.settings.model}@{CHAMPION}")[1]
        self._take(self.version)
        self.settings.check_join(self._models.row_columns(self.online.manifest))
        learned = self.online.manifest.data.get("learner", {}).get("last")
        if learned is not None:
            self.joiner.last = self.joiner.begun = (learned[0], learned[1])
        #: Examples learned when the version was published that is in force; examples are counted over the learner's whole life.
        self._published = 0

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        state = found.state
        told = self.settings.kept
        if {**told, **state["settings"]} != told:  # earlier checkpoints do not say all
            raise ModelError(
                f"the learner of {self.settings.model!r} was stopped with {state['settings']}, and is told {told} now, so what it keeps "
                f"means something else: set them back, or delete {self._env.offline.path(checkpoints.checkpoint_key(self.settings.model))} "
                "to begin from the champion and all logs"
            )
        self.id, self._n, self.version, self._published = state["id"], state["n"], state["version"], state["published"]
        self.counts, self.alerts = {**self.counts, **state["counts"]}, state["alerts"]
        self.joiner.restore(state["joiner"])
        self.labels.positions = {int(p): o for p, o in state["labels"]["positions"].items()}
        self.labels.unreadable = state["labels"]["unreadable"]
        manifest = self._models.manifest(self.settings.model, self.version)
        self.predictions.restore(state["predictions"], manifest.definition)
        key = self._env.offline.path(checkpoints.checkpoint_key(self.settings.model))
        frameworks.check_versions(f"the learner's checkpoint {key}", state.get("libraries", {"river": manifest.libraries["river"]}))
        self.online = OnlineModel.load(manifest, found.model)
        self.metrics = Prequential(manifest.kind)
        self.metrics.restore(state["metrics"])

    def _take(self, version: str) -> None:
        """Go on from a version of the registry. Raises `ModelRefusedError` for one that cannot be learned with."""
        manifest, artifact = self._models.checked(self.settings.model, version)
        if manifest.framework != "river":
            raise ModelRefusedError(
                f"{manifest.model} {version} is of {manifest.framework}, and only River learns online: register a model of River, and "
                f"promote it to {self.settings.alias}"
            )
        if manifest.kind == "regressor" and self.settings.missing == "negative":
            raise ModelError("[learner] missing is negative, and a regression has no negative class: drop what has no label")
        frameworks.check_libraries(manifest)  # before the pickle is read
        self.online, self.version = OnlineModel.of(manifest, artifact), version
        self.metrics = Prequential(manifest.kind)

    # ---- a step -----------------------------------------------------------------------------------------------------------------

    @property
    def learned(self) -> int:
        """Examples learned, over the learner's whole life."""
        return self.counts["learned"]

    @property
    def fresh(self) -> bool:
        """Whether it has learned something that is not published."""
        return self.learned > self._published and self.paused is None

    def await_labels(self) -> bool:
        """After a step that did nothing: whether there are labels that a client has not fetched yet; then it waits a little for them."""
        if self.paused is not None or self.labels.at_end:
            return False
        time.sleep(_FETCH)
        return True

    def step(self) -> int:
        """Read what is new, and learn what can be learned; how much there was, 0 when there is nothing to do for now."""
        self._follow()
        if self.paused is None and self._due():  # it died between keeping and publishing
            self.publish()
        if self.paused is not None:
            return 0
        try:
            return self._stepped()
        except BaseException:
            self._halfway = True
            raise

    def _stepped(self) -> int:
        # Labels first: a prediction is in its log before its label comes, so none is missed that these labels close, as long as all that
        # is in the log by now is taken before them: every file, and every partition of the topic to its end.
        labels = self.labels.read()
        batches = 0
        for batch in self.predictions.new():
            batches += 1
            self._guard()
            for prediction in batch:
                self.joiner.predicted(prediction)
        for partition, some in labels:
            for label in some:
                self.joiner.labelled(partition, label)
        self._dirty = self._dirty or bool(labels or batches)
        for example in self.joiner.closed():
            if self._learn(example) and self._due():
                self.publish()
                if self.paused is not None:  # the rest waits, for whatever it goes on from
                    return 0
        if self.fresh and self._clock() - self._published_at >= self.settings.publish_every:
            self.publish()
        if self._dirty and self.paused is None and self._clock() - self._kept_at >= self._seconds:
            self.keep()
        return batches + sum(len(some) for _, some in labels)

    def _due(self) -> bool:
        return self.learned - self._published >= self.settings.publish_examples

    def _learn(self, example: Example) -> bool:
        """Measure, then learn an example; whether it was learned."""
        prediction, value = example.prediction, example.label
        online = self.online
        manifest = online.manifest
        # Looked at now, not when it was read: by now it may be another version that learns.
        if self.predictions.meanings[prediction.meaning] != manifest.definition:
            self.counts["other_definition"] += 1
            return False
        if prediction.outcome == FALLBACK:  # no model was asked: its features were missing, or the store was away
            self.counts["fallback"] += 1
            return False
        if value is None:
            self.counts["missing"] += 1
            if self.settings.missing == "drop":
                return False
            value = manifest.negative
        try:
            label, row = online.label(value), online.row(prediction.x)
        except RefusedError:
            self.counts["refused"] += 1
            return False
        score = prediction.score
        if score is not None:
            number = float(label == manifest.positive) if manifest.classes is not None else label
            self.metrics.update(score, number)
            for what in online.drifted(abs(number - score), score):
                self._alert(what, prediction.at)
        try:
            online.learn(row, label)
        except RefusedError as error:
            self.counts["refused"] += 1
            self._say("warning", "an example is refused", prediction=prediction.id, reason=str(error))
            return False
        self.counts["learned"] += 1
        return True

    def _alert(self, what: str, at: int) -> None:
        self.counts[f"drift_on_{what}"] += 1
        alert = {"drift_on": what, "at": from_micros(at).isoformat(), "learned": self.learned, "metrics": self.metrics.metrics()}
        self.alerts = [*self.alerts[-_ALERTS + 1 :], alert]
        self._say("warning", f"the {what} drifts", **alert)

    # ---- versions ---------------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """See whether somebody else has moved the alias, and go on from where it stands now."""
        aliases: Mapping[str, str] | None = None
        n = self._n
        for entry in self._models.journal(self.settings.model).after(n):
            n, aliases = entry.n, entry.aliases
        if aliases is None and self.paused is None:
            return
        aliases = self._models.aliases(self.settings.model) if aliases is None else aliases
        wanted = aliases.get(self.settings.alias, self.version)
        if wanted == self.version:
            self._go_on()
        elif self._mine(wanted):
            self.version, self.paused, self._published = wanted, None, self.learned
        else:
            self._reset(wanted)
        if self.paused is None:  # else what made it pause is to be seen again, by whoever begins at the checkpoint too
            self._n = n

    def _go_on(self) -> None:
        """After a pause: with what it has, if the version that it comes from may be learned with again."""
        if self.paused is not None:
            try:
                self._models.checked(self.settings.model, self.version)
            except ModelError as error:
                self._pause(error)
            else:
                self.paused = None

    def _mine(self, version: str) -> bool:
        """Whether a version is what this learner published with just these examples: it died before it could note that.

        Raises `ModelError` where it published the version with more examples than it knows of: then the checkpoint is an old one.
        """
        try:
            found = self._models.manifest(self.settings.model, version).data.get("learner", {})
        except NotFoundError:
            return False
        same = found.get("id") == self.id and found.get("resets") == self.counts["resets"]
        if same and found["learned"] > self.learned:
            key = self._env.offline.path(checkpoints.checkpoint_key(self.settings.model))
            raise ModelError(
                f"the learner's checkpoint knows {self.learned} examples, and it published version {version} with {found['learned']}: "
                f"it is an old one; restore {key}, or delete it to begin from the champion and all logs"
            )
        return bool(same and found["learned"] == self.learned)

    def _reset(self, version: str) -> None:
        """Let go of what was learned since, and go on from a version of the registry; what was read stays read."""
        before = self.version
        try:
            self._take(version)
        except ModelError as error:
            self._pause(error)
            return
        self.paused = None
        self.counts["resets"] += 1
        self._published, self._published_at = self.learned, self._clock()
        self._say("info", "goes on from another version", version=version, before=before)
        self.keep()

    def _pause(self, error: ModelError) -> None:
        if self.paused != str(error):
            self._say("warning", "paused", reason=str(error))
            self.paused = str(error)
            self._tell()

    def publish(self) -> bool:
        """Register the model as a version and move the alias to it; False where somebody else has moved it, or where it is refused."""
        self.keep()  # so that no version is out that the checkpoint does not know
        self._published_at = self._clock()
        name, alias = self.settings.model, self.settings.alias
        try:
            self._models.checked(name, self.version)  # what it learned from is still what the features mean
            newest = self._models.versions(name)[-1]
            version = newest if self._mine(newest) else self._register()
            self._models.promote(name, version, alias=alias, by=_BY, why=f"{self.learned} examples", over=self.version)
        except ModelRefusedError as error:
            # It scores nothing finite any more, or cannot be asked: River keeps such a state for ever.
            self._say("warning", "what was learned is refused", reason=str(error))
            self._reset(self.version)
            return False
        except ModelError as error:
            self._say("info", "not published", reason=str(error))
            self._follow()
            return False
        self.counts["published"] += 1
        self._dirty = True
        self._say("info", "published", version=version, learned=self.learned, **self.metrics.metrics())
        self._follow()
        return True

    def _register(self) -> str:
        before = self.online.manifest
        found = self._models.register(
            self.settings.model,
            self.online.model,
            service=before.service,
            features=before.columns,
            kind=before.kind,
            classes=before.classes,
            positive=before.positive,
            threshold=before.threshold,
            fill=before.fill,
            fallback=before.fallback,
            max_missing=before.max_missing,
            metrics=self.metrics.metrics(),
            data={
                "learner": {"id": self.id, "learned": self.learned, "resets": self.counts["resets"], "last": list(self.joiner.last)},
                "from": self.version,
                "until": from_micros(self.joiner.frontier).isoformat(),
            },
            description=f"learned online from version {self.version}",
            by=_BY,
        )
        return found.version

    # ---- what it keeps ----------------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """The checkpoint: everything in one write. Then the status, for people."""
        self._guard()
        state = {
            "id": self.id,
            "n": self._n,
            "version": self.version,
            "published": self._published,
            "settings": self.settings.kept,
            "counts": self.counts,
            "alerts": self.alerts,
            "joiner": self.joiner.state(),
            "libraries": frameworks.installed(("river",)),
            "predictions": self.predictions.state(),
            "labels": {"positions": {str(p): o for p, o in self.labels.positions.items()}, "unreadable": self.labels.unreadable},
            "metrics": self.metrics.state(),
        }
        checkpoints.save(self._env.offline, self.settings.model, checkpoints.Checkpoint(state, self.online.dump()))
        self._tell()
        self._dirty, self._kept_at = False, self._clock()

    def _tell(self) -> None:
        self._env.offline.write(status_key(self.settings.model), json.dumps(self.status()).encode())

    def status(self) -> dict[str, Any]:
        """How it goes, for people and scripts."""
        frontier = self.joiner.frontier
        return {
            "model": self.settings.model,
            "version": self.version,
            "at": from_micros(self._now()).isoformat(),
            "closed_until": from_micros(frontier).isoformat() if frontier > 0 else None,
            "waiting": self.joiner.waiting,
            "paused": self.paused,
            "metrics": self.metrics.metrics(),
            "counts": {
                **self.counts,
                **{f"labels_{n}" if "prediction" not in n else n: c for n, c in self.joiner.counts.items()},
                "labels_unreadable": self.labels.unreadable,
                "predictions_damaged": self.predictions.damaged,
            },
            "alerts": self.alerts,
        }

    def close(self) -> None:
        """Keep what is new, and give back files. After a step that failed half-way nothing is kept: what it had read must be read again."""
        try:
            if self._dirty and self.paused is None and not self._halfway:
                self.keep()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Give back files and connections, and keep nothing."""
        try:
            self.predictions.close()
        finally:
            self.labels.close()
