"""What a user writes: sources, entities, views, on-demand features and services, in features.py; and the project's tidemill.toml."""

from __future__ import annotations

from tidemill.definitions.catalog import Definitions
from tidemill.definitions.entity import Entity
from tidemill.definitions.expressions import Filter
from tidemill.definitions.load import load_definitions
from tidemill.definitions.on_demand import OnDemand, Request, RequestField, on_demand
from tidemill.definitions.project import Project
from tidemill.definitions.resolve import FeatureSet, resolve_features
from tidemill.definitions.service import FeatureService
from tidemill.definitions.source import Source
from tidemill.definitions.view import Feature, FeatureRef, FeatureView, Selection

__all__ = [
    "Definitions",
    "Entity",
    "Feature",
    "FeatureRef",
    "FeatureService",
    "FeatureSet",
    "FeatureView",
    "Filter",
    "OnDemand",
    "Project",
    "Request",
    "RequestField",
    "Selection",
    "Source",
    "load_definitions",
    "on_demand",
    "resolve_features",
]
