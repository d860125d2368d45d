"""tidemill: declare a feature once; stream, batch, backfill and request return the same number."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidemill.aggregations import approx_count_distinct as approx_count_distinct
    from tidemill.aggregations import count as count
    from tidemill.aggregations import first as first
    from tidemill.aggregations import last as last
    from tidemill.aggregations import last_n as last_n
    from tidemill.aggregations import max as max
    from tidemill.aggregations import mean as mean
    from tidemill.aggregations import min as min
    from tidemill.aggregations import quantile as quantile
    from tidemill.aggregations import stddev as stddev
    from tidemill.aggregations import sum as sum
    from tidemill.aggregations import variance as variance
    from tidemill.answers import AsOf as AsOf
    from tidemill.answers import OnlineFeatures as OnlineFeatures
    from tidemill.client import FeatureStore as FeatureStore
    from tidemill.datasets.result import HistoricalFeatures as HistoricalFeatures
    from tidemill.definitions import Entity as Entity
    from tidemill.definitions import FeatureService as FeatureService
    from tidemill.definitions import FeatureView as FeatureView
    from tidemill.definitions import Project as Project
    from tidemill.definitions import Request as Request
    from tidemill.definitions import Source as Source
    from tidemill.definitions import on_demand as on_demand
    from tidemill.models.scores import Scores as Scores
    from tidemill.remote.client import AsyncScoringClient as AsyncScoringClient
    from tidemill.remote.client import ScoringClient as ScoringClient
    from tidemill.types import Timestamp as Timestamp

__version__ = "0.1.0"

#: Where each public name lives. They are imported at first use: the command line answers `--help`, and
#: the HTTP clients ask and answer, without loading Polars.
_HOMES = {
    "tidemill.aggregations": (
        *("approx_count_distinct", "count", "first", "last", "last_n", "max", "mean", "min", "quantile", "stddev", "sum", "variance"),
    ),
    "tidemill.answers": ("AsOf", "OnlineFeatures"),
    "tidemill.client": ("FeatureStore",),
    "tidemill.datasets.result": ("HistoricalFeatures",),
    "tidemill.definitions": ("Entity", "FeatureService", "FeatureView", "Project", "Request", "Source", "on_demand"),
    "tidemill.models.scores": ("Scores",),
    "tidemill.remote.client": ("AsyncScoringClient", "ScoringClient"),
    "tidemill.types": ("Timestamp",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605  (a list of text; the names are those of the table above)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tidemill' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
