"""The registry of models: versions as files in the project's offline store.

    models/<name>/<version>/golden.json     claims the number, with one create
    models/<name>/<version>/<artifact>      what the adapter made
    models/<name>/<version>/manifest.json   comes last: without it there is no such version
    models/<name>/journal/<n>.json          aliases, and who moved them; see `journal`

Nothing is ever changed. Whatever may race is a create-if-absent, so a directory and a bucket do alike.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tidemill.definitions import FeatureSet, resolve_features
from tidemill.definitions.names import check_name, suggestion
from tidemill.environment import Environment
from tidemill.errors import DefinitionError, ModelError, ModelRefusedError, NotFoundError, TidemillError
from tidemill.models import frameworks
from tidemill.models.candidate import Prepared, check_fill, two_classes, used_features
from tidemill.models.golden import FILE as GOLDEN
from tidemill.models.golden import Golden, golden_rows
from tidemill.models.journal import ALIASES, CHALLENGER, CHAMPION, PREVIOUS, Entry, Journal, State
from tidemill.models.loaded import LoadedModel, load_model, score_finite, unchecked
from tidemill.models.manifest import Class, Fallback, Kind, Manifest, Stored, check_fallback, check_max_missing
from tidemill.models.meaning import definition_digest, features_of
from tidemill.models.predictor import Context, Dumped, Matrix
from tidemill.times import from_micros
from tidemill.types import ColumnType

MANIFEST = "manifest.json"
#: Of the golden rows given, at most so many are kept.
GOLDEN_ROWS = 100

#: (Inside the class, `list` is a method.)
Manifests: TypeAlias = list[Manifest]
Names: TypeAlias = list[str]
Numbers: TypeAlias = list[int]


class Models:
    """The models of one project. Many processes may read and write at once. `clock`: wall-clock UTC microseconds."""

    def __init__(self, env: Environment, clock: Callable[[], int]) -> None:
        self._env = env
        self._clock = clock
        self._journals: dict[str, Journal] = {}
        self._context = Context(env.project.directory, tuple(env.project.settings.get("models", {}).get("trusted", ())))

    # ---- reading ----------------------------------------------------------------------------------------------------------------

    def names(self) -> Names:
        """All models that have a version, sorted. A registration that was killed leaves a folder without one."""
        return [name for key in self._env.offline.folders("models") if self._has_versions(name := key.rpartition("/")[2])]

    def versions(self, name: str) -> Names:
        """A model's versions, oldest first. Raises `NotFoundError` for a model that nobody registered."""
        numbers = [n for n in self._numbers(name) if self._env.offline.exists(f"models/{name}/{n}/{MANIFEST}")]
        if not numbers:
            raise NotFoundError(
                f"there is no model {name!r}; {suggestion(name, self.names())}; register one with `tidemill model register`, or train it"
            )
        return [str(n) for n in numbers]

    def manifest(self, name: str, version: str) -> Manifest:
        """What a version is. Raises `NotFoundError`, `ModelRefusedError`."""
        key = f"models/{name}/{version}/{MANIFEST}"
        data = self._env.offline.read(key) if version.isascii() and version.isdigit() else None
        if data is None:
            raise NotFoundError(f"model {name!r} has no version {version!r}; it has {', '.join(self.versions(name))}")
        found = Manifest.decode(data, self._env.offline.path(key))
        if (found.model, found.version) != (name, version):
            raise ModelRefusedError(
                f"{self._env.offline.path(key)} is the manifest of {found.model} {found.version}: restore it from a copy"
            )
        return found

    def list(self, name: str | None = None) -> Manifests:
        """All versions of a model, or of all models."""
        return [self.manifest(n, v) for n in ([name] if name is not None else self.names()) for v in self.versions(n)]

    def aliases(self, name: str) -> dict[str, str]:
        """Which versions are champion, challenger and previous now."""
        return dict(self.journal(name).newest().aliases)

    def journal(self, name: str) -> Journal:
        """Who moved what, when and why."""
        if name not in self._journals:
            self._journals[name] = Journal(self._env.offline, check_name(name, "a model's name"))
        return self._journals[name]

    def file(self, name: str, version: str, file: str) -> bytes | None:
        """A file of a version, such as report.json; None where it has none of this name."""
        return self._env.offline.read(f"models/{name}/{version}/{file}")

    def resolve(self, reference: str) -> tuple[str, str]:
        """The model and version of `name` (its champion), `name@alias` or `name@version`. Raises `NotFoundError`."""
        name, at, which = reference.partition("@")
        which = which if at else CHAMPION
        if which.isascii() and which.isdigit():
            return name, self.manifest(name, which).version
        version = self.aliases(name).get(which)
        if version is None:
            if which not in ALIASES:
                raise NotFoundError(
                    f"model {name!r} has no alias {which!r}: after the @ comes {', '.join(ALIASES)}, or one of its versions, "
                    f"{', '.join(self.versions(name))}"
                )
            versions = self.versions(name)
            hint = f"promote one with `tidemill model promote {name} {versions[-1]}`" if which == CHAMPION else "name a version"
            raise NotFoundError(f"model {name!r} has no {which}: {hint}; it has the versions {', '.join(versions)}")
        return name, version

    def load(self, reference: str) -> LoadedModel:
        """A version, checked and ready to be asked.

        Raises `NotFoundError`, and `ModelRefusedError` for an artifact with another hash, a service that means something else than when
        the model was made, libraries of another version, and golden rows that are not scored as they were.
        """
        manifest, artifact = self.checked(*self.resolve(reference))
        golden_key = f"models/{manifest.model}/{manifest.version}/{manifest.golden.file}"
        where = self._env.offline.path(golden_key)
        golden = Golden.decode(manifest.golden.check(self._env.offline.read(golden_key), where), where)
        return load_model(manifest, artifact, golden, self._request(manifest), self._context)

    def checked(self, name: str, version: str) -> tuple[Manifest, bytes]:
        """A version's manifest and artifact, of the right hash, and for what the service means now. Raises `ModelRefusedError`."""
        manifest = self.manifest(name, version)
        key = f"models/{name}/{version}/{manifest.artifact.file}"
        artifact = manifest.artifact.check(self._env.offline.read(key), self._env.offline.path(key))
        self._check_definition(manifest)
        return manifest, artifact

    def row_columns(self, manifest: Manifest) -> dict[str, ColumnType]:
        """What a row that this version scores has: key columns and request columns, with their types."""
        asked = self._request(manifest)
        wanted = resolve_features(asked if isinstance(asked, str) else [*asked], self._env.definitions)
        return {**wanted.keys, **wanted.request}

    # ---- writing ----------------------------------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        model: Any,
        *,
        service: str,
        metrics: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        description: str = "",
        files: Mapping[str, bytes] | None = None,
        by: str | None = None,
        why: str | None = None,
        **options: Any,
    ) -> Manifest:
        """Keep a fitted model as the next version of `name`. It serves nobody before it is promoted.

        `model`, `service` and the other options: see `prepare`. `metrics` and `data` (from, to, rows of the training set) go into the
        manifest, `files` beside it.
        """
        prepared = self.prepare(name, model, service=service, **options)
        return self.add(prepared, metrics=metrics, data=data, description=description, files=files, by=by, why=why)

    def prepare(
        self,
        name: str,
        model: Any,
        *,
        service: str,
        features: Sequence[str] | None = None,
        kind: Kind | None = None,
        classes: Sequence[Class] | None = None,
        positive: Class | None = None,
        threshold: float | None = None,
        fill: Mapping[str, float] | None = None,
        fallback: Fallback = None,
        max_missing: int | None = None,
        golden: Matrix | None = None,
    ) -> Prepared:
        """A fitted model as a version would have it, tried, and not kept yet.

        `model`: a fitted model of scikit-learn, LightGBM or River, an ONNX model, a file of one (.skops, .onnx, .txt), or an import path
        `module:attribute`. `features`: the columns of its matrix in order, where it does not know them and they are not simply the
        service's. `classes`, in the model's order, and `positive`, the one whose probability is the score (default: the second; its
        text will do). `threshold`: from which score on a row is in that class (0.5). `fill`: what replaces a null, per feature; other
        nulls are NaN. `fallback`, `max_missing`: see `FeatureStore.score`. `golden`: rows to try it with, besides nulls, zeros and ones.

        Raises `ModelError` for a model that does not fit the service, is no binary classifier or regression, or does not score
        its golden rows with finite numbers; `NotFoundError` for the service.
        """
        check_name(name, "a model's name")
        wanted = self._wanted(service)
        framework = frameworks.framework_of(model)
        dumped = self._dumped(framework, model, kind, None if classes is None else tuple(classes))
        used = used_features(features_of(wanted), features or dumped.names, dumped.width, service)
        check_fill(fill or {}, {f.name for f in used})
        pair, chosen, limit = two_classes(dumped, positive, threshold)
        try:
            fallback, max_missing = check_fallback(fallback), check_max_missing(max_missing)
        except ValueError as error:
            raise ModelError(str(error)) from None
        manifest = Manifest(
            model=name,
            version="",
            framework=framework,
            kind=dumped.kind,
            service=service,
            definition=definition_digest(used),
            features=used,
            artifact=Stored.of(dumped.file, dumped.data),
            golden=Stored(GOLDEN, "", 0),
            created_at=self._now(),
            classes=pair,
            positive=chosen,
            threshold=limit,
            fill={k: float(v) for k, v in (fill or {}).items()},
            fallback=fallback,
            max_missing=max_missing,
            libraries=frameworks.installed(dumped.libraries),
            pinned=dumped.pinned,
            options=dumped.options,
        )
        loaded = unchecked(manifest, dumped.data, "", self._context)
        given = None if golden is None else np.asarray(golden, dtype=np.float64)[:GOLDEN_ROWS]
        if given is not None and given.shape[1:] != (len(used),):
            raise ModelError(f"golden rows have the shape {given.shape}, and {len(used)} features were expected: (rows, {len(used)})")
        if given is not None and np.isinf(given).any():
            raise ModelError("golden rows hold an infinity, which no feature is: leave those rows out")
        rows = golden_rows(len(used), given)
        tried = Golden(manifest.columns, tuple(tuple(None if np.isnan(v) else v for v in r) for r in rows.tolist()), ())
        encoded = replace(tried, scores=tuple(score_finite(loaded, rows).tolist())).encode()
        return Prepared(replace(loaded, manifest=replace(manifest, golden=Stored.of(GOLDEN, encoded))), dumped.data, encoded)

    def add(
        self,
        prepared: Prepared,
        *,
        metrics: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        description: str = "",
        files: Mapping[str, bytes] | None = None,
        by: str | None = None,
        why: str | None = None,
    ) -> Manifest:
        """Keep what `prepare` made as the next version."""
        said = replace(
            prepared.loaded.manifest, metrics=dict(metrics or {}), data=dict(data or {}), description=description, created_at=self._now()
        )
        try:
            said.encode()  # before a number is claimed
        except (TypeError, UnicodeEncodeError) as error:
            raise ModelError(f"metrics, data and description are kept as JSON, which cannot hold them: {error}") from None
        manifest = self._stored(said, prepared.golden, prepared.artifact, files or {})
        self._append(manifest.model, "register", manifest.version, None, by, why, lambda state: state)
        return manifest

    def promote(
        self, name: str, version: str, *, alias: str = CHAMPION, by: str | None = None, why: str | None = None, over: str | None = None
    ) -> Entry:
        """Make a version champion (the one before becomes `previous`), or challenger.

        `over`: only if the alias stands at this version at that moment, or nowhere; "" is nowhere only. It is loaded and tried first.

        Raises `ModelRefusedError` where it would be refused by scorers too, `ModelError` where someone else moved an alias meanwhile.
        """
        if alias not in (CHAMPION, CHALLENGER):
            raise ModelError(f"a version is promoted to {CHAMPION} or {CHALLENGER}; got {alias!r}; {PREVIOUS} is what was champion before")
        self.load(f"{name}@{self.manifest(name, version).version}")

        def moved(state: State) -> State:
            if over is not None and state.aliases.get(alias, over) != over:
                raise ModelError(_MOVED.format(name=name))
            return state.promoted(version) if alias == CHAMPION else state.challenged(version)

        return self._append(name, "promote", version, alias, by, why, moved)

    def rollback(self, name: str, *, by: str | None = None, why: str | None = None) -> Entry:
        """Make `previous` champion again; `previous` is then what was so before it, so that a second one goes back another step.

        The version is not tried first, but for its files and definitions: it has served before, and it is to go fast.
        """
        self.versions(name)  # an unknown model
        standing = self.journal(name).newest().standing
        if len(standing) < 2:
            raise ModelError(
                f"model {name!r} has no previous version to go back to: promote one with `tidemill model promote {name} VERSION`"
            )
        self.checked(name, standing[-2])

        def moved(state: State) -> State:
            if state.standing != standing:
                raise ModelError(_MOVED.format(name=name))
            return state.rolled_back()

        return self._append(name, "rollback", standing[-2], CHAMPION, by, why, moved)

    # ---- inside -----------------------------------------------------------------------------------------------------------------

    def _dumped(self, framework: str, model: Any, kind: Kind | None, classes: tuple[Class, ...] | None) -> Dumped:
        adapter = frameworks.adapter(framework)
        if framework != "python" and isinstance(model, (str, Path)):
            try:
                model = Path(model).read_bytes()
            except OSError as error:
                raise ModelError(f"{model} cannot be read: {error.strerror or error}") from None
        try:
            return adapter.dump(model, kind, classes, self._context)
        except ModuleNotFoundError as error:
            raise frameworks.missing_library(framework, error) from error

    def _stored(self, manifest: Manifest, golden: bytes, artifact: bytes, files: Mapping[str, bytes]) -> Manifest:
        """The version, written: its number is the first that nobody has claimed."""
        offline = self._env.offline
        number = max(self._numbers(manifest.model), default=0) + 1
        while not offline.create(f"models/{manifest.model}/{number}/{manifest.golden.file}", golden):
            number += 1
        manifest = replace(manifest, version=str(number))
        folder = f"models/{manifest.model}/{number}"
        for file, data in {**files, manifest.artifact.file: artifact, MANIFEST: manifest.encode()}.items():
            if not offline.create(f"{folder}/{file}", data):
                raise ModelError(f"{offline.path(folder)} is being written by someone else: register it again")
        return manifest

    def _append(
        self,
        name: str,
        action: Any,
        version: str,
        alias: str | None,
        by: str | None,
        why: str | None,
        moved: Callable[[State], State],
    ) -> Entry:
        """The next entry of the journal. One that others wrote meanwhile matters only where it moved an alias."""
        journal = self.journal(name)
        before = journal.newest()
        first = before.aliases
        while True:
            state = moved(State.after(before))
            entry = Entry(before.n + 1, self._now(), action, version, alias, _text(by), _text(why), state.aliases, state.standing)
            if journal.append(entry):
                return entry
            for other in journal.after(before.n):
                if action != "register" and other.aliases != first:
                    raise ModelError(_MOVED.format(name=name))
                before = other

    def _has_versions(self, name: str) -> bool:
        try:
            numbers = self._numbers(name)
        except DefinitionError:  # a folder that is none of ours
            return False
        return any(self._env.offline.exists(f"models/{name}/{n}/{MANIFEST}") for n in reversed(numbers))

    def _numbers(self, name: str) -> Numbers:
        check_name(name, "a model's name")
        folders = (key.rpartition("/")[2] for key in self._env.offline.folders(f"models/{name}"))
        return sorted(int(f) for f in folders if f.isascii() and f.isdigit())

    def _wanted(self, service: str) -> FeatureSet:
        self._env.definitions.service(service)
        return resolve_features(service, self._env.definitions)

    def _request(self, manifest: Manifest) -> str | tuple[str, ...]:
        """The service by its name, where the model reads all of it: the shortest to look up. Else the features, one by one."""
        wanted = self._wanted(manifest.service)
        if set(wanted.columns) == set(manifest.columns):
            return manifest.service
        by_column = {o.column: str(getattr(o, "name", o)) for o in wanted.outputs}
        return tuple(by_column[c] for c in manifest.columns)

    def _check_definition(self, manifest: Manifest) -> None:
        """Raise `ModelRefusedError` unless the model's features mean what they meant when it was made."""
        what = manifest.title
        again = f"undo that, or train the model again; its other versions: `tidemill model list {manifest.model}`"
        try:
            now = features_of(self._wanted(manifest.service))
        except TidemillError as error:
            raise ModelRefusedError(
                f"{what} reads service {manifest.service!r}, which the definitions here do not have ({error})"
            ) from error
        for feature in manifest.features:
            found = now.get(feature.name)
            if found is None:
                raise ModelRefusedError(f"{what} reads {feature.name}, which service {manifest.service!r} does not have any more: {again}")
            if found != feature:
                raise ModelRefusedError(f"{what} was made when {feature.name} was defined differently from what it is here: {again}")
        if definition_digest(manifest.features) != manifest.definition:
            raise ModelRefusedError(f"the manifest of {what} contradicts itself about its features: restore it from a copy")

    def _now(self) -> str:
        return from_micros(self._clock()).astimezone(dt.UTC).isoformat()


def _text(said: str | None) -> str | None:
    """What a caller said, as UTF-8: a command line may hold bytes that are none."""
    return None if said is None else said.encode("utf-8", "replace").decode()


_MOVED = (
    "someone else moved an alias of model {name!r} meanwhile: look at `tidemill model show {name}`, and run this again if it still is meant"
)
