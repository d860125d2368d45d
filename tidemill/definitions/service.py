"""Feature services: the named list of features that one model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.definitions.names import check_name
from tidemill.definitions.on_demand import OnDemand
from tidemill.definitions.view import FeatureRef, FeatureView, Selection
from tidemill.errors import DefinitionError

#: A stored feature, an on-demand feature, or a name that only the project's definitions can resolve.
Entry = FeatureRef | OnDemand | str


@dataclass(frozen=True, init=False)
class FeatureService:
    """The named, ordered list of features that one model reads: views, selections of them, `"view:feature"`, on-demand features.

    A feature that is listed twice comes once, in its first place. `entries` are what was listed, views and selections written
    out; `resolve_features` says what they need. Raises `DefinitionError`.
    """

    name: str
    entries: tuple[Entry, ...]
    description: str
    views: Mapping[str, FeatureView] = field(compare=False, repr=False)

    def __init__(self, name: str, features: Sequence[FeatureView | Selection | OnDemand | str], *, description: str = "") -> None:
        check_name(name, "a service's name")
        if not isinstance(features, (list, tuple)) or not features:
            raise DefinitionError(f"service {name!r}: features must be a list, such as [view, 'view:feature', on_demand]; got {features!r}")
        views: dict[str, FeatureView] = {}
        entries: list[Entry] = []
        for given in features:
            entries += _entries(name, given, views)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "entries", tuple(dict.fromkeys(entries)))
        object.__setattr__(self, "description", description)
        object.__setattr__(self, "views", views)

    def __hash__(self) -> int:
        return hash((self.name, self.entries))

    @property
    def on_demands(self) -> tuple[OnDemand, ...]:
        """The on-demand features among the entries."""
        return tuple(entry for entry in self.entries if isinstance(entry, OnDemand))

    def spec(self) -> dict[str, Any]:
        """The service as JSON, which `from_spec` reads back with names in the place of on-demand features."""
        names = [entry.name if isinstance(entry, OnDemand) else str(entry) for entry in self.entries]
        return {"name": self.name, "features": names, "description": self.description}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> FeatureService:
        """The service that `spec` describes."""
        return cls(spec["name"], features=spec["features"], description=spec["description"])


def _entries(service: str, given: object, views: dict[str, FeatureView]) -> list[Entry]:
    if isinstance(given, (FeatureView, Selection)):
        view = given.view if isinstance(given, Selection) else given
        _add_view(service, view, views)
        return list(given.refs)
    if isinstance(given, OnDemand):
        for view in given.views.values():
            _add_view(service, view, views)
        return [given]
    if isinstance(given, str):
        view_name, colon, feature = given.partition(":")
        if not given or (colon and not (view_name and feature)):
            raise DefinitionError(f"service {service!r}: {given!r} is not the name of a feature: write 'view:feature'")
        return [FeatureRef(view_name, feature) if colon else given]
    kinds = "a view, view['feature'], 'view:feature' or an on-demand feature"
    raise DefinitionError(f"service {service!r}: a feature is {kinds}; got {given!r}")


def _add_view(service: str, view: FeatureView, views: dict[str, FeatureView]) -> None:
    if views.setdefault(view.name, view) != view:
        raise DefinitionError(f"service {service!r}: two different views are named {view.name!r}; rename one")
