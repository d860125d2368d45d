"""Feature views: one source, one entity, and the aggregations over them."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from tidemill.definitions.entity import Entity
from tidemill.definitions.expressions import Filter
from tidemill.definitions.names import check_name, suggestion
from tidemill.definitions.source import Source, str_of_type
from tidemill.errors import DefinitionError, NotFoundError
from tidemill.stable import digest
from tidemill.times import RUNGS, Window, format_duration, parse_duration
from tidemill.types import ColumnType

if TYPE_CHECKING:  # aggregations import filters from this package
    from tidemill.aggregations import Aggregation


class FeatureRef(NamedTuple):
    """A feature's full name. `str()` is `view:feature`, `column` is `view__feature`.

    >>> ref = FeatureRef("origin_departures", "count_1h")
    >>> str(ref), ref.column
    ('origin_departures:count_1h', 'origin_departures__count_1h')
    """

    view: str
    feature: str

    def __str__(self) -> str:
        return f"{self.view}:{self.feature}"

    @property
    def column(self) -> str:
        """The name of the output column."""
        return f"{self.view}__{self.feature}"


class Feature(NamedTuple):
    """One aggregation over one window, and the type of its values (for `last_n`, of the values in its lists)."""

    aggregation: Aggregation
    window: Window
    type: ColumnType


@dataclass(frozen=True, init=False)
class FeatureView:
    """One source, one entity, an optional row filter, and a list of aggregations with their windows.

    `where` is an SQL condition that an event must pass to count at all. `max_lag`: an answer that is further behind is `stale`; kept
    as microseconds. `hop`: a finer step for the old edges of all windows whose own hop is wider; a rung (1s, 10s, 1m, ...); kept as
    microseconds, and already applied to `aggregations`. `features` maps each short name to its `Feature`.

    `view["count_1h"]` and `view[["count_1h", "late_1h"]]` select features for a service.

    Raises `DefinitionError`, naming the view, where anything does not fit the source's schema or two features get one name.
    """

    name: str
    source: Source
    entity: Entity
    aggregations: tuple[Aggregation, ...]
    where: str | None
    max_lag: int | None
    hop: int | None
    description: str
    features: Mapping[str, Feature] = field(compare=False, repr=False)
    key_types: Mapping[str, ColumnType] = field(compare=False, repr=False)

    def __init__(
        self,
        name: str,
        source: Source,
        entity: Entity,
        aggregations: Sequence[Aggregation],
        *,
        where: str | None = None,
        max_lag: str | dt.timedelta | None = None,
        hop: str | dt.timedelta | None = None,
        description: str = "",
    ) -> None:
        check_name(name, "a view's name")
        if "__" in name or name.endswith("_"):
            raise DefinitionError(f"view {name!r}: a view's name has no '__' and no '_' at its end (columns are view__feature); rename it")
        if not isinstance(source, Source):
            raise DefinitionError(f"view {name!r}: source must be a tidemill.Source; got {source!r}")
        if not isinstance(entity, Entity):
            raise DefinitionError(f"view {name!r}: entity must be a tidemill.Entity, such as Entity('card'); got {entity!r}")
        with _naming(f"view {name!r}"):
            key_types = entity.key_types(source.schema)
            if where is not None:
                Filter(where).check(source.schema)
            lag = _positive(max_lag, "max_lag")
            step = _rung(hop)
            stepped = _with_hop(_checked(aggregations), step)
        values: dict[str, object] = {
            "name": name,
            "source": source,
            "entity": entity,
            "aggregations": stepped,
            "where": where,
            "max_lag": lag,
            "hop": step,
            "description": description,
            "features": MappingProxyType(_features(name, source, stepped)),
            "key_types": MappingProxyType(key_types),
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def __hash__(self) -> int:
        return hash((self.name, self.digest))

    def __getitem__(self, features: str | Sequence[str]) -> Selection:
        """The selection of one feature, or of several. Raises `NotFoundError`."""
        return self.select(*([features] if isinstance(features, str) else features))

    def __contains__(self, feature: object) -> bool:
        return feature in self.features

    def select(self, *features: str) -> Selection:
        """The selection of these features, in this order. Raises `NotFoundError`."""
        for feature in features:
            if feature not in self.features:
                raise NotFoundError(f"view {self.name!r} has no feature {feature!r}; {suggestion(str(feature), self.features)}")
        return Selection(self, tuple(features))

    @property
    def refs(self) -> tuple[FeatureRef, ...]:
        """The full names of all features, in order."""
        return tuple(FeatureRef(self.name, feature) for feature in self.features)

    @property
    def basis(self) -> str:
        """A stable hash of what all the view's states have in common: the events, which of them count, and whose they are."""
        keys = [[key, str_of_type(kind)] for key, kind in self.key_types.items()]
        return digest({"source": self.source.digest, "keys": keys, "where": self._where_meaning(self.where)})

    def aggregation_digest(self, aggregation: Aggregation) -> str:
        """A stable hash of everything that one aggregation's state depends on, its windows included.

        Other aggregations of the view do not change it, nor does the aggregation's `name`.
        """
        spec = aggregation.spec()
        del spec["name"]
        spec["windows"] = sorted(spec["windows"], key=lambda window: (window[0] is None, window))
        column = None if aggregation.column is None else str_of_type(self.source.schema[aggregation.column])
        return digest([self.basis, spec, column, self._where_meaning(aggregation.where)])

    @property
    def digest(self) -> str:
        """A stable hash of the view's numbers: which there are and what each means. Not of `max_lag`, nor of any order."""
        features = {n: [f.window.length, f.window.hop, self.aggregation_digest(f.aggregation)] for n, f in self.features.items()}
        return digest([self.name, self.basis, features])

    def _where_meaning(self, where: str | None) -> list[object] | None:
        """The text, and the types of the columns it reads: `a / b > 2` means something else over other types."""
        if where is None:
            return None
        columns = Filter(where).columns(self.source.schema)
        return [where.strip(), sorted((column, str_of_type(self.source.schema[column])) for column in columns)]

    def spec(self) -> dict[str, Any]:
        """The whole definition as JSON, its source and entity included, which `from_spec` reads back."""
        return {
            "name": self.name,
            "source": self.source.spec(),
            "entity": self.entity.spec(),
            "aggregations": [aggregation.spec() for aggregation in self.aggregations],
            "where": self.where,
            "max_lag": None if self.max_lag is None else format_duration(self.max_lag),
            "hop": None if self.hop is None else format_duration(self.hop),
            "description": self.description,
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, source: Source | None = None, entity: Entity | None = None) -> FeatureView:
        """The view that `spec` describes; with `source` and `entity`, over these objects instead of fresh equal ones."""
        from tidemill.aggregations import aggregation_from_spec  # they import filters from this package

        return cls(
            spec["name"],
            source=source or Source.from_spec(spec["source"]),
            entity=entity or Entity.from_spec(spec["entity"]),
            aggregations=[aggregation_from_spec(aggregation) for aggregation in spec["aggregations"]],
            where=spec["where"],
            max_lag=spec["max_lag"],
            hop=spec["hop"],
            description=spec["description"],
        )


@dataclass(frozen=True)
class Selection:
    """Some features of one view, by short name, in order."""

    view: FeatureView
    features: tuple[str, ...]

    @property
    def refs(self) -> tuple[FeatureRef, ...]:
        """Their full names."""
        return tuple(FeatureRef(self.view.name, feature) for feature in self.features)


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
    """Puts the place in front of every DefinitionError that passes."""
    try:
        yield
    except DefinitionError as error:
        raise type(error)(f"{place}: {error}") from None


def _checked(aggregations: object) -> tuple[Aggregation, ...]:
    from tidemill.aggregations import Aggregation

    if isinstance(aggregations, Aggregation):
        return (aggregations,)
    if not isinstance(aggregations, (list, tuple)) or not aggregations:
        raise DefinitionError(f"aggregations must be a list such as [tidemill.count(windows=['1h'])]; got {aggregations!r}")
    for item in aggregations:
        if not isinstance(item, Aggregation):
            raise DefinitionError(f"{item!r} is not an aggregation; write tidemill.count(windows=['1h']) or the like")
    return tuple(aggregations)


def _positive(declared: str | dt.timedelta | None, what: str) -> int | None:
    if declared is None:
        return None
    with _naming(what):
        micros = parse_duration(declared)
    if micros <= 0:
        raise DefinitionError(f"{what} must be more than nothing, such as '1m'; got {declared!r}")
    return micros


def _rung(declared: str | dt.timedelta | None) -> int | None:
    micros = _positive(declared, "hop")
    if micros is not None and micros not in RUNGS:
        raise DefinitionError(f"hop {declared!r} is not a rung: choose one of {', '.join(map(format_duration, RUNGS))}")
    return micros


def _with_hop(aggregations: tuple[Aggregation, ...], hop: int | None) -> tuple[Aggregation, ...]:
    """The aggregations, their windows' hops no wider than `hop`. `lifetime` has no old edge that could move."""
    if hop is None:
        return aggregations
    widest = max((w.hop for a in aggregations for w in a.windows if w.length is not None), default=hop)
    if hop > widest:
        raise DefinitionError(
            f"hop {format_duration(hop)!r} would change nothing: every window's own is {format_duration(widest)} or finer"
        )

    def stepped(window: Window) -> Window:
        return window if window.length is None else Window(window.length, min(window.hop, hop))

    return tuple(a.with_windows([stepped(window) for window in a.windows]) for a in aggregations)


def _features(view: str, source: Source, aggregations: tuple[Aggregation, ...]) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    for aggregation in aggregations:
        named = aggregation.features()
        with _naming(f"view {view!r}, {named[0][0] if named else aggregation.function}"):
            kind = aggregation.check(source.schema)
            if aggregation.where is not None:
                Filter(aggregation.where).check(source.schema)
        for name, window in named:
            check_name(name, f"view {view!r}: a feature's name")
            if name in features:
                raise DefinitionError(f"view {view!r} has two features named {name!r}: tell the aggregations apart with name='...'")
            features[name] = Feature(aggregation, window, kind)
    return features
