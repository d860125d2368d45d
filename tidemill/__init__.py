"""tidemill: declare a feature once; stream, batch, backfill and request return the same number."""

from __future__ import annotations

from tidemill.aggregations import approx_count_distinct, count, first, last, last_n, max, mean, min, quantile, stddev, sum, variance
from tidemill.client import AsOf, FeatureStore, OnlineFeatures
from tidemill.definitions import Entity, FeatureService, FeatureView, Project, Request, Source, on_demand
from tidemill.types import Timestamp

__version__ = "0.1.0"

__all__ = [
    "AsOf",
    "Entity",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "OnlineFeatures",
    "Project",
    "Request",
    "Source",
    "Timestamp",
    "approx_count_distinct",
    "count",
    "first",
    "last",
    "last_n",
    "max",
    "mean",
    "min",
    "on_demand",
    "quantile",
    "stddev",
    "sum",
    "variance",
]
