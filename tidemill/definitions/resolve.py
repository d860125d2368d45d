"""From what a request names to what it needs: views, stored features, on-demand features, request columns, keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidemill.definitions.names import suggestion
from tidemill.definitions.on_demand import OnDemand
from tidemill.definitions.service import FeatureService
from tidemill.definitions.view import FeatureRef, FeatureView, Selection
from tidemill.errors import DefinitionError, NotFoundError
from tidemill.types import ColumnType

if TYPE_CHECKING:  # the catalog resolves its services with this module
    from tidemill.definitions.catalog import Definitions

Requested = str | FeatureService | FeatureView | Selection | OnDemand | FeatureRef
Output = FeatureRef | OnDemand


@dataclass(frozen=True)
class FeatureSet:
    """What a request comes to.

    `outputs`: the features asked for, in order, each once. `stored`: every stored feature to read, those that on-demand features need
    included. `views`: the views that these are in, by name. `keys` and `request`: the columns that each row must bring, with types.
    `service`: the service's name, where one was asked for.
    """

    outputs: tuple[Output, ...]
    views: Mapping[str, FeatureView]
    service: str | None = None
    stored: tuple[FeatureRef, ...] = field(init=False)
    keys: Mapping[str, ColumnType] = field(init=False)
    request: Mapping[str, ColumnType] = field(init=False)

    def __post_init__(self) -> None:
        stored = [ref for output in self.outputs for ref in (output.refs if isinstance(output, OnDemand) else (output,))]
        keys: dict[str, ColumnType] = {}
        for view in self.views.values():
            _merge(keys, view.key_types, f"key of view {view.name!r}")
        row = dict(keys)
        for on_demand in self.on_demands:
            _merge(row, on_demand.request, f"request column of on-demand feature {on_demand.name!r}")
        for on_demand in self.on_demands:
            if on_demand.name in row:  # in the answer, one would overwrite the other
                what = "a key" if on_demand.name in keys else "a request column"
                raise DefinitionError(
                    f"on-demand feature {on_demand.name!r} is named like {what} of the same features: rename it, or pass name="
                )
        object.__setattr__(self, "stored", tuple(dict.fromkeys(stored)))
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "request", {name: kind for name, kind in row.items() if any(name in o.request for o in self.on_demands)})

    @property
    def on_demands(self) -> tuple[OnDemand, ...]:
        """The on-demand features asked for, in order."""
        return tuple(output for output in self.outputs if isinstance(output, OnDemand))

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the output columns, in order: `view__feature`, or the on-demand feature's name."""
        return tuple(output.column for output in self.outputs)


def resolve_features(features: Requested | Sequence[Requested], definitions: Definitions) -> FeatureSet:
    """What these features need.

    `features` is a service or its name, or a list of `"view:feature"`, `"view__feature"`, names of services, views and on-demand
    features, and the objects themselves. Raises `NotFoundError`, with near matches, for what nobody defined, and `DefinitionError`
    where two views want one key column in two types, or an on-demand feature is named like a key or a request column.
    """
    listed = list(features) if isinstance(features, (list, tuple)) and not isinstance(features, FeatureRef) else [features]
    if not listed:
        raise NotFoundError("no features were asked for: name a service, or a list of 'view:feature'")
    service = None
    if len(listed) == 1 and isinstance(listed[0], FeatureService):
        service = listed[0].name
    elif len(listed) == 1 and isinstance(listed[0], str) and listed[0] in definitions.services:
        service = listed[0]
    resolver = _Resolver(definitions)
    for requested in listed:
        resolver.add(requested)
    return FeatureSet(tuple(resolver.outputs), resolver.views, service)


class _Resolver:
    def __init__(self, definitions: Definitions) -> None:
        self.definitions = definitions
        self.outputs: dict[Output, None] = {}
        self.views: dict[str, FeatureView] = {}

    def add(self, requested: object, context: str = "") -> None:
        if isinstance(requested, FeatureRef):
            self.ref(requested, context)
        elif isinstance(requested, str):
            self.text(requested, context)
        elif isinstance(requested, FeatureService):
            for entry in requested.entries:
                self.add(entry, f"service {requested.name!r}: ")
        elif isinstance(requested, (FeatureView, Selection)):
            for ref in requested.refs:
                self.ref(ref, context)
        elif isinstance(requested, OnDemand):
            for ref in requested.refs:
                self.view(ref, f"on-demand feature {requested.name!r}: ")
            self.outputs[requested] = None
        else:
            raise NotFoundError(f"{context}{requested!r} names no feature: use a service's name, 'view:feature', or the objects themselves")

    def ref(self, ref: FeatureRef, context: str) -> None:
        self.view(ref, context)
        self.outputs[ref] = None

    def view(self, ref: FeatureRef, context: str) -> None:
        views = self.definitions.views
        if ref.view not in views:
            raise NotFoundError(f"{context}there is no view {ref.view!r} (asked for as {str(ref)!r}); {suggestion(ref.view, views)}")
        view = views[ref.view]
        if ref.feature not in view.features:
            raise NotFoundError(f"{context}view {ref.view!r} has no feature {ref.feature!r}; {suggestion(ref.feature, view.features)}")
        self.views[ref.view] = view

    def text(self, text: str, context: str) -> None:
        known = self.definitions
        view_name, colon, feature = text.partition(":")
        if colon:
            self.ref(FeatureRef(view_name, feature), context)
        elif text in known.services:
            self.add(known.services[text])
        elif text in known.on_demands:
            self.add(known.on_demands[text])
        elif text in known.views:
            self.add(known.views[text])
        elif "__" in text and text.partition("__")[0] in known.views:
            view_name, _, feature = text.partition("__")
            self.ref(FeatureRef(view_name, feature), context)
        else:
            full = [str(ref) for view in known.views.values() for ref in view.refs]
            names = [*known.services, *known.on_demands, *known.views, *full]
            raise NotFoundError(f"{context}there is no service, view, feature or on-demand feature {text!r}; {suggestion(text, names)}")


def _merge(columns: dict[str, ColumnType], more: Mapping[str, ColumnType], what: str) -> None:
    for name, kind in more.items():
        if columns.setdefault(name, kind).name != kind.name:
            raise DefinitionError(f"{what}: {name!r} is a {kind} here and a {columns[name]} elsewhere among the features; declare it alike")
