"""What an `apply` would change: the registry's version in force beside the one that the definitions ask for.

Pure: two `Applied` in, a `Plan` out. What it says about size is an upper bound for one entity behind the head (the events of the last
seconds come on top, one record each, until they are compacted).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.applied import Applied, AppliedBundle, AppliedView, Stored
from tidemill.definitions import FeatureView, Source
from tidemill.definitions.source import str_of_type
from tidemill.kernel.buckets import QuantileTable
from tidemill.kernel.entries import EntriesTable
from tidemill.kernel.fixed import FixedTable
from tidemill.kernel.registers import PRECISION, RegisterTable
from tidemill.times import format_duration

#: Beyond this an entity of one view is big: every read decodes it, and every entity pays for it.
MANY_BYTES = 512 * 1024
MANY_TILES = 3_000

_BUCKET_BYTES = 24
_REGISTERS_BYTES = 56 * (1 << PRECISION) // 32
#: A sketch of quantiles has 64 buckets, a record each, for every power of two that its values span; so many are taken as usual.
QUANTILE_POWERS = 16
#: Of an entry, which is JSON: span, tag, time, id, value, count; text is taken for 32 bytes.
_ENTRY_BYTES = {"str": 96}
_ENTRY_USUAL = 80


@dataclass(frozen=True, slots=True)
class FeatureChange:
    """One feature, by its short name.

    `kind`: added, changed (it means something else), recounted (the same meaning, but its state is lost), or removed. `bundle`: where it
    will be; `missing`: it answers nothing until `tidemill batch` has folded the source's history.
    """

    name: str
    kind: str
    bundle: str | None
    missing: bool


@dataclass(frozen=True, slots=True)
class BundleChange:
    """A bundle of a view. `kind`: new, kept or retired. `features`: what it answers."""

    id: str
    kind: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ViewChange:
    """A view. `kind`: added, changed, removed or unchanged. `details`: what of its definition changed, as "what: before -> after"."""

    name: str
    kind: str
    details: tuple[str, ...]
    features: tuple[FeatureChange, ...]
    bundles: tuple[BundleChange, ...]


@dataclass(frozen=True, slots=True)
class SourceChange:
    """A source. `kind`: added, removed, redefined (events mean something else), moved (the log lies elsewhere) or changed (what else)."""

    name: str
    kind: str
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """A service. `kind`: added, changed or removed; features by full name."""

    name: str
    kind: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ViewSize:
    """What one entity takes at most in a view. `largest`: the table that takes most of it, by what it holds."""

    view: str
    features: int
    tiles: int
    bytes: int
    largest: str


@dataclass(frozen=True)
class Plan:
    """See the module's text. `version` is the one in force, 0 before the first `apply`."""

    version: int
    views: tuple[ViewChange, ...]
    sources: tuple[SourceChange, ...]
    services: tuple[ServiceChange, ...]
    sizes: tuple[ViewSize, ...]
    warnings: tuple[str, ...]
    differs: bool

    @property
    def removed(self) -> tuple[str, ...]:
        """What stops being answered: views, and `view:feature`."""
        views = [v.name for v in self.views if v.kind == "removed"]
        return (*views, *self._features("removed"))

    @property
    def invalidated(self) -> tuple[str, ...]:
        """Features that answer now and lose their state, as `view:feature`."""
        return self._features("changed", "recounted")

    @property
    def missing(self) -> tuple[str, ...]:
        """Features that will be `missing` until `tidemill batch` has folded their source's history, as `view:feature`."""
        return tuple(f"{v.name}:{f.name}" for v in self.views for f in v.features if f.missing)

    def _features(self, *kinds: str) -> tuple[str, ...]:
        return tuple(f"{v.name}:{f.name}" for v in self.views if v.kind != "removed" for f in v.features if f.kind in kinds)


def compare(before: Applied, after: Applied) -> Plan:
    """What committing `after` over `before` changes."""
    sources = tuple(_sources(before.sources, after.sources))
    sizes = tuple(view_size(v) for v in after.views.values())
    names = list(dict.fromkeys([*after.views, *before.views]))
    return Plan(
        version=before.version,
        views=tuple(_view(name, before.views.get(name), after.views.get(name)) for name in names),
        sources=sources,
        services=tuple(_services(before.services, after.services)),
        sizes=sizes,
        warnings=(*_size_warnings(sizes), *_moves(sources), *_empty_history(before.sources, after.sources)),
        differs=not before.version or before.spec() != after.spec(),
    )


# ---- views ----------------------------------------------------------------------------------------------------------------------


def _view(name: str, before: AppliedView | None, after: AppliedView | None) -> ViewChange:
    if after is None:
        assert before is not None
        gone = tuple(FeatureChange(f, "removed", None, missing=False) for f in before.view.features)
        return ViewChange(name, "removed", (), gone, _bundles(before, None))
    old = before.view.features if before is not None else {}
    features = [f for f in (_feature(n, before, after) for n in after.view.features) if f is not None]
    features += [FeatureChange(n, "removed", None, missing=False) for n in old if n not in after.view.features]
    details = () if before is None else tuple(_details(before.view, after.view))
    bundles = _bundles(before, after)
    changed = bool(features or details) or any(b.kind != "kept" for b in bundles)
    return ViewChange(name, "added" if before is None else "changed" if changed else "unchanged", details, tuple(features), bundles)


def _feature(name: str, before: AppliedView | None, after: AppliedView) -> FeatureChange | None:
    """How a feature of the new version differs, None if it does not."""
    new = after.stored(name)
    old = before.stored(name) if before is not None and name in before.view.features else None
    fresh = before is None or new.bundle.id not in {b.bundle.id for b in before.bundles}
    missing = fresh and next(b.history for b in after.bundles if b.bundle is new.bundle)
    if old is None:
        return FeatureChange(name, "added", new.bundle.id, missing)
    assert before is not None
    if _meaning(before.view, old) != _meaning(after.view, new):
        return FeatureChange(name, "changed", new.bundle.id, missing)
    return FeatureChange(name, "recounted", new.bundle.id, missing) if fresh else None


def _meaning(view: FeatureView, stored: Stored) -> str:
    """Of one feature alone: its aggregation's other windows do not matter."""
    return view.aggregation_digest(stored.feature.aggregation.with_windows([stored.feature.window]))


def _bundles(before: AppliedView | None, after: AppliedView | None) -> tuple[BundleChange, ...]:
    old = {b.bundle.id: b for b in before.bundles} if before is not None else {}
    new = {b.bundle.id: b for b in after.bundles} if after is not None else {}
    changes = [BundleChange(i, "kept" if i in old else "new", answered(after, b)) for i, b in new.items() if after is not None]
    changes += [BundleChange(i, "retired", answered(before, b)) for i, b in old.items() if i not in new and before is not None]
    return tuple(changes)


def answered(view: AppliedView, bundle: AppliedBundle) -> tuple[str, ...]:
    """The features of a view that one of its bundles answers, by short name."""
    return tuple(n for n in view.view.features if view.stored(n).bundle is bundle.bundle)


def _details(before: FeatureView, after: FeatureView) -> Iterable[str]:
    yield from _differences(
        {
            "keys": (", ".join(before.entity.keys), ", ".join(after.entity.keys)),
            "where": (before.where, after.where),
            "source": (before.source.name, after.source.name),
            "max_lag": (_duration(before.max_lag), _duration(after.max_lag)),
        }
    )
    if before.source.name == after.source.name and before.source.digest != after.source.digest:
        yield "its source's events mean something else"
    for key in after.entity.keys:
        types = before.key_types.get(key), after.key_types[key]
        if types[0] is not None and types[0] != types[1]:
            yield f"type of {key}: {types[0]} -> {types[1]}"


# ---- sources and services -------------------------------------------------------------------------------------------------------


def _sources(before: Mapping[str, Source], after: Mapping[str, Source]) -> Iterable[SourceChange]:
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield SourceChange(name, "added" if old is None else "removed", ())
        elif old.spec() != new.spec():
            place = tuple(_differences({k: (getattr(old, k), getattr(new, k)) for k in ("topic", "path", "format")}))
            meaning = ("timestamp", "event_id", "arrival")
            details = [*place, *_differences({k: (getattr(old, k), getattr(new, k)) for k in meaning})]
            details += _differences({"max_ahead": (_duration(old.max_ahead), _duration(new.max_ahead))})
            for column in dict.fromkeys([*new.schema, *old.schema]):
                types = (str_of_type(s.schema[column]) if column in s.schema else None for s in (old, new))
                details += _differences({f"column {column}": tuple(types)})
            details += _differences({"start": (old.start, new.start)})
            kind = "redefined" if old.digest != new.digest else "moved" if place else "changed"
            yield SourceChange(name, kind, tuple(details))


def _moves(sources: Iterable[SourceChange]) -> Iterable[str]:
    for source in sources:
        if source.kind == "moved":
            yield (
                f"source {source.name} is to be read from another place ({'; '.join(source.details)}): positions stay as they are, so the "
                f"same offsets must hold the same events there; if they do not, give it another name"
            )


def _empty_history(before: Mapping[str, Source], after: Mapping[str, Source]) -> Iterable[str]:
    for name in before.keys() & after.keys():
        old, new = before[name].schema, after[name].schema
        for column, kind in new.items():
            if old.get(column) != kind and (str(old.get(column)), str(kind)) != ("int", "float"):
                what = "of another type" if column in old else "new"
                yield (
                    f"column {column} of source {name} is {what}: events that are archived already have no value there (null), and dead "
                    "letters that are events now count when they are replayed"
                )


def _services(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> Iterable[ServiceChange]:
    for name in dict.fromkeys([*after, *before]):
        old, new = before.get(name), after.get(name)
        had, has = ([] if s is None else s["features"] for s in (old, new))
        if old != new:
            kind = "added" if old is None else "removed" if new is None else "changed"
            yield ServiceChange(name, kind, tuple(f for f in has if f not in had), tuple(f for f in had if f not in has))


def _differences(pairs: Mapping[str, tuple[object, ...]]) -> Iterable[str]:
    for what, (old, new) in pairs.items():
        if old != new:
            yield f"{what}: {_shown(old)} -> {_shown(new)}"


def _shown(value: object) -> str:
    return "none" if value is None else str(value)


def _duration(micros: int | None) -> str | None:
    return None if micros is None else format_duration(micros)


# ---- sizes ----------------------------------------------------------------------------------------------------------------------


def view_size(view: AppliedView) -> ViewSize:
    """The tiles and bytes that one entity can take at most in a view: every tile there, every sketch full.

    Sketches of quantiles are taken for values that span 16 powers of two (as from 1 to 65,536), text for 32 bytes a value.
    """
    tiles = total = most = 0
    largest = ""
    for applied in view.bundles:
        bundle_tiles = applied.bundle.ladder.most_tiles()
        tiles += bundle_tiles
        for table in applied.bundle.tables:
            taken = bundle_tiles * tile_bytes(table)
            total += taken
            if taken > most:
                most, largest = taken, _held(table)
    return ViewSize(view.view.name, len(view.view.features), tiles, total, largest)


def tile_bytes(table: object) -> int:
    """The bytes that one tile of one of a bundle's tables takes at most."""
    match table:
        case FixedTable():
            return (table.words + 2) * 8
        case RegisterTable():
            return _REGISTERS_BYTES
        case QuantileTable():
            powers = {"bool": 1}.get(table.type.name, QUANTILE_POWERS)
            return _BUCKET_BYTES * powers * 64
        case EntriesTable():
            return table.order.n * _ENTRY_BYTES.get(table.type.name, _ENTRY_USUAL)
    raise TypeError(f"the size of a {type(table).__name__} is not known")


def _held(table: object) -> str:
    match table:
        case RegisterTable():
            return f"distinct {table.column}"
        case QuantileTable():
            return f"quantiles of {table.column}"
        case EntriesTable():
            return f"{'last' if table.order.last else 'first'} {table.column}"
    return "sums and counts"


def _size_warnings(sizes: Iterable[ViewSize]) -> Iterable[str]:
    for s in sizes:
        if s.bytes > MANY_BYTES or s.tiles > MANY_TILES:
            yield (
                f"an entity of {s.view} can take {s.bytes / 1e6:,.1f} MB in {s.tiles:,} tiles, most of it {s.largest}: shorter windows, "
                "fewer of them, or a view of its own for the long ones make it smaller"
            )
