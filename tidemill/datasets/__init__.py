"""Training sets: what a live request would have answered at many instants of the past."""

from __future__ import annotations

from tidemill.datasets.point_in_time import ARRIVAL, EVENT_TIME, Terms, get_historical_features
from tidemill.datasets.result import HistoricalFeatures

__all__ = ["ARRIVAL", "EVENT_TIME", "HistoricalFeatures", "Terms", "get_historical_features"]
