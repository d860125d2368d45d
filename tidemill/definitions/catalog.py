"""Everything that one project defines, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tidemill.definitions.entity import Entity
from tidemill.definitions.names import suggestion
from tidemill.definitions.on_demand import OnDemand
from tidemill.definitions.resolve import resolve_features
from tidemill.definitions.service import FeatureService
from tidemill.definitions.source import Source
from tidemill.definitions.view import FeatureView
from tidemill.errors import DefinitionError, NotFoundError

_Named = TypeVar("_Named", Source, Entity, FeatureView, OnDemand, FeatureService)


@dataclass(frozen=True)
class Definitions:
    """Sources, entities, views, services and on-demand features by name, each name once in its kind."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    entities: Mapping[str, Entity] = field(default_factory=dict)
    views: Mapping[str, FeatureView] = field(default_factory=dict)
    services: Mapping[str, FeatureService] = field(default_factory=dict)
    on_demands: Mapping[str, OnDemand] = field(default_factory=dict)

    @classmethod
    def collect(cls, objects: Iterable[object]) -> Definitions:
        """The definitions among these objects, and those that they refer to.

        Raises `DefinitionError` for two different definitions of one name, for a service or an on-demand feature named like a view
        or like one another, and `NotFoundError` for a service with a feature that nobody defined.
        """
        sources: dict[str, Source] = {}
        entities: dict[str, Entity] = {}
        views: dict[str, FeatureView] = {}
        services: dict[str, FeatureService] = {}
        on_demands: dict[str, OnDemand] = {}
        for definition in objects:
            if isinstance(definition, Source):
                _add(sources, definition, "source")
            elif isinstance(definition, Entity):
                _add(entities, definition, "entity")
            elif isinstance(definition, FeatureView):
                _add(views, definition, "view")
            elif isinstance(definition, OnDemand):
                _add(on_demands, definition, "on-demand feature")
            elif isinstance(definition, FeatureService):
                _add(services, definition, "service")
        for service in services.values():
            for on_demand in service.on_demands:
                _add(on_demands, on_demand, "on-demand feature")
            for view in service.views.values():
                _add(views, view, "view")
        for on_demand in on_demands.values():
            for view in on_demand.views.values():
                _add(views, view, "view")
        for view in views.values():
            _add(sources, view.source, "source")
            _add(entities, view.entity, "entity")
        definitions = cls(sources, entities, views, services, on_demands)
        definitions._check_names()
        for service in services.values():
            resolve_features(service, definitions)
        return definitions

    def _check_names(self) -> None:
        kinds = {"view": self.views, "on-demand feature": self.on_demands, "service": self.services}
        seen: dict[str, str] = {}
        for kind, named in kinds.items():
            for name in named:
                if name in seen:
                    raise DefinitionError(f"{name!r} names a {seen[name]} and a {kind}: a request could mean either; rename one")
                seen[name] = kind
        columns = {ref.column for view in self.views.values() for ref in view.refs}
        for name in self.on_demands:
            if name in columns:
                raise DefinitionError(f"on-demand feature {name!r} has the name of a view's output column; rename it")

    def view(self, name: str) -> FeatureView:
        """The view of this name. Raises `NotFoundError`."""
        if name not in self.views:
            raise NotFoundError(f"there is no view {name!r}; {suggestion(name, self.views)}")
        return self.views[name]

    def entity(self, name: str) -> Entity:
        """The entity of this name. Raises `NotFoundError`."""
        if name not in self.entities:
            raise NotFoundError(f"there is no entity {name!r}; {suggestion(name, self.entities)}")
        return self.entities[name]

    def source(self, name: str) -> Source:
        """The source of this name. Raises `NotFoundError`."""
        if name not in self.sources:
            raise NotFoundError(f"there is no source {name!r}; {suggestion(name, self.sources)}")
        return self.sources[name]

    def service(self, name: str) -> FeatureService:
        """The service of this name. Raises `NotFoundError`."""
        if name not in self.services:
            raise NotFoundError(f"there is no service {name!r}; {suggestion(name, self.services)}")
        return self.services[name]

    def spec(self) -> dict[str, Any]:
        """All definitions as JSON. Views name their source and entity; on-demand features are code, of which names and a hash are kept."""
        return {
            "sources": [source.spec() for source in self.sources.values()],
            "entities": [entity.spec() for entity in self.entities.values()],
            "views": [view.spec() | {"source": view.source.name, "entity": view.entity.name} for view in self.views.values()],
            "services": [service.spec() for service in self.services.values()],
            "on_demands": [on_demand.spec() for on_demand in self.on_demands.values()],
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Definitions:
        """The definitions that `spec` describes, but for the on-demand features, whose code only the definitions file has."""
        sources = {item["name"]: Source.from_spec(item) for item in spec["sources"]}
        entities = {item["name"]: Entity.from_spec(item) for item in spec["entities"]}
        views = {
            item["name"]: FeatureView.from_spec(item, source=sources[item["source"]], entity=entities[item["entity"]])
            for item in spec["views"]
        }
        services = {item["name"]: FeatureService.from_spec(item) for item in spec["services"]}
        return cls(sources, entities, views, services)


def _add(known: dict[str, _Named], definition: _Named, kind: str) -> None:
    """Sources and entities may be written out again where they are the same; the others stand once."""
    existing = known.setdefault(definition.name, definition)
    same = existing == definition if isinstance(definition, (Source, Entity)) else existing is definition
    if not same:
        raise DefinitionError(f"two definitions of the {kind} {definition.name!r}: give each its own name, or define it only once")
