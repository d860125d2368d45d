"""What `apply` has written to the registry: views, and the bundles that hold their state.

A bundle is born with the features that no older bundle of its view can answer. So the first `apply` of a view makes one; an
added aggregation makes a second, with its own state, positions and backfill, and the first goes on serving; a bundle that answers no
feature any more is retired. A bundle's id is a hash of what its state means and over how many shards it is spread, so that the same
definition finds the same state, and another number of shards never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tidemill.aggregations import Aggregation, aggregation_from_spec
from tidemill.definitions import Definitions, Feature, FeatureView, Source
from tidemill.definitions.source import str_of_type, type_of_str
from tidemill.errors import DefinitionError, NotAppliedError, StoreVersionError
from tidemill.kernel.bundle import Bundle, Reader
from tidemill.kernel.table import RECORD_VERSION
from tidemill.stable import digest
from tidemill.times import Window

FORMAT = 2
Spec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AppliedBundle:
    """A bundle of a view. `history`: events were archived before it was applied, so that it starts from a backfill, not from offset 0."""

    bundle: Bundle
    view: str
    source: str
    history: bool

    def spec(self) -> Spec:
        return {
            "id": self.bundle.id,
            "aggregations": [a.spec() for a in self.bundle.aggregations],
            "schema": {c: str_of_type(k) for c, k in self.bundle.schema.items()},  # a kept bundle may be older than the view's schema
            "history": self.history,
        }


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a feature's state is, and how to read it."""

    bundle: Bundle
    feature: Feature
    read: Reader


@dataclass(frozen=True)
class AppliedView:
    """A view as it was applied."""

    view: FeatureView
    bundles: tuple[AppliedBundle, ...]

    def stored(self, feature: str) -> Stored:
        """Where a feature of this view is. Raises `NotAppliedError`."""
        declared = self.view.features.get(feature)
        if declared is not None:
            for applied in self.bundles:
                if _covers(applied, self.view, declared):
                    reader = applied.bundle.reader(declared.aggregation, declared.window)
                    return Stored(applied.bundle, declared, reader)
        raise NotAppliedError(f"feature {self.view.name}:{feature} is not applied: run `tidemill apply`")


@dataclass(frozen=True)
class Applied:
    """One version of the registry, compiled. `version` 0 and nothing in it before the first `apply`."""

    version: int
    shards: int
    views: Mapping[str, AppliedView]
    services: Mapping[str, Spec]
    #: How the events of each source were decoded, since its first `apply`: see `decoding`.
    decoded: Mapping[str, Spec] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, Source]:
        """The sources that applied views read, by name."""
        return {v.view.source.name: v.view.source for v in self.views.values()}

    @property
    def bundles(self) -> list[AppliedBundle]:
        """All bundles, by view."""
        return [b for v in self.views.values() for b in v.bundles]

    def of_source(self, source: str) -> list[AppliedBundle]:
        """The bundles that read a source."""
        return [b for b in self.bundles if b.source == source]

    def view(self, name: str) -> AppliedView:
        """A view. Raises `NotAppliedError`."""
        if name not in self.views:
            raise NotAppliedError(f"view {name!r} is not applied: run `tidemill apply`")
        return self.views[name]

    def spec(self) -> Spec:
        """What the registry keeps."""
        return {
            "format": FORMAT,
            "shards": self.shards,
            "views": {n: {"definition": v.view.spec(), "bundles": [b.spec() for b in v.bundles]} for n, v in sorted(self.views.items())},
            "services": dict(sorted(self.services.items())),
            "decoded": dict(sorted(self.decoded.items())),
        }

    @classmethod
    def from_spec(cls, version: int, spec: Mapping[str, Any]) -> Applied:
        """One version of the registry. Raises `StoreVersionError` for one that a newer tidemill wrote."""
        if spec.get("format") != FORMAT:
            raise StoreVersionError(
                f"the registry has format {spec.get('format')!r}, and this tidemill reads {FORMAT}: use the version that wrote it"
            )
        views = {}
        for name, entry in spec["views"].items():
            view = FeatureView.from_spec(entry["definition"])
            bundles = [
                _compiled(view, [aggregation_from_spec(a) for a in b["aggregations"]], b["history"], spec["shards"], b)
                for b in entry["bundles"]
            ]
            views[name] = AppliedView(view, _serving(view, bundles))
        return cls(version, spec["shards"], views, spec["services"], spec["decoded"])


def _compiled(
    view: FeatureView, aggregations: Sequence[Aggregation], history: bool, shards: int, kept: Spec | None = None
) -> AppliedBundle:
    """A new bundle of a view, or (`kept`: its spec) one that the registry has."""
    name = "" if kept is None else kept["id"]
    bundle = Bundle(
        name,
        schema=view.source.schema if kept is None else {c: type_of_str(k) for c, k in kept["schema"].items()},
        event_id=view.source.event_id,
        keys=view.entity.keys,
        where=view.where,
        aggregations=aggregations,
    )
    if kept is None:
        windows = sorted([w.length or 0, w.hop] for w in bundle.windows)
        state = [RECORD_VERSION, view.name, view.basis, [t.key for t in bundle.tables], windows, shards]
        made = AppliedBundle(bundle, view.name, view.source.name, history)
        return _compiled(view, aggregations, history, shards, {**made.spec(), "id": f"{view.name}-{digest(state)}"})
    return AppliedBundle(bundle, view.name, view.source.name, history)


def _covers(applied: AppliedBundle, view: FeatureView, feature: Feature) -> bool:
    return applied.bundle.covers(feature.aggregation, feature.window, view.source.schema, view.source.event_id)


def _serving(view: FeatureView, bundles: Sequence[AppliedBundle]) -> tuple[AppliedBundle, ...]:
    """Let each bundle answer the features that it is the first to cover."""
    for feature in view.features.values():
        for applied in bundles:
            if _covers(applied, view, feature):
                applied.bundle.serve(feature.aggregation)
                break
    return tuple(bundles)


def apply_view(view: FeatureView, before: AppliedView | None, history: bool, shards: int) -> AppliedView:
    """The view with the bundles that it needs: those it has that still answer a feature, and one more for what they cannot."""
    old = before.bundles if before is not None and before.view.basis == view.basis else ()
    kept: list[AppliedBundle] = []
    missing: dict[Aggregation, list[Window]] = {}
    for feature in view.features.values():
        for applied in old:
            if _covers(applied, view, feature):
                if applied not in kept:
                    kept.append(applied)
                break
        else:
            missing.setdefault(feature.aggregation, []).append(feature.window)
    if missing:
        kept.append(_compiled(view, [replace(a, windows=tuple(w)) for a, w in missing.items()], history, shards))
    return AppliedView(view, _serving(view, kept))


def apply_definitions(definitions: Definitions, before: Applied, shards: int, archived: set[str]) -> Applied:
    """The registry's next version. `archived`: the sources of which events are archived already.

    With another number of `shards` than before, every bundle is a new one.
    """
    old = before.views if before.shards == shards else {}
    views = {n: apply_view(v, old.get(n), v.source.name in archived, shards) for n, v in definitions.views.items()}
    services = {n: s.spec() for n, s in definitions.services.items()}
    decoded = dict(before.decoded)
    for source in {v.source.name: v.source for v in definitions.views.values()}.values():
        rules = decoded.get(source.name) if source.name in archived else None
        decoded[source.name] = decoding(source) if rules is None else _still_decoded(source, rules)
    return Applied(before.version + 1, shards, views, services, decoded)


def decoding(source: Source) -> Spec:
    """What decides how a source's records are decoded, and which of them are events at all."""
    columns = {c: str_of_type(k) for c, k in source.schema.items()}
    return {"timestamp": source.timestamp, "arrival": source.arrival, "max_ahead": source.max_ahead, "columns": columns}


def _still_decoded(source: Source, before: Spec) -> Spec:
    """The decoding of a source of which events are archived, with the columns that are new. Raises `DefinitionError`.

    The archive holds events as they were decoded. Where the rule for their times has changed, history would lie by the old one and what
    comes by the new one. Other columns may come, go and change their type: archived events then have no value there (but an int is a
    float too).
    """
    now = decoding(source)
    changes = [(what, before[what], now[what]) for what in ("timestamp", "arrival", "max_ahead") if before[what] != now[what]]
    for column, kind in now["columns"].items():
        was = before["columns"].get(column, kind)
        if was != kind and (column in (source.timestamp, source.arrival) or {was[:9], kind[:9]} == {"timestamp"}):
            changes.append((f"type of {column}", was, kind))
    if changes:
        what, was, kind = changes[0]
        raise DefinitionError(
            f"source {source.name!r}: {what} was {was!r} and is now {kind!r}, but events are archived as they were decoded then: "
            f"change it back, or declare a source of another name, which begins with an archive of its own"
        )
    return {**now, "columns": {**before["columns"], **now["columns"]}}


NOTHING_APPLIED = Applied(0, 0, {}, {})
