"""Training: a labelled frame becomes a candidate version with a report. Needs scikit-learn.

`measures` says how good a model is, `report` writes it down, `gates` decides about promoting without a person, `trainer` puts them
together. The frame, its split by time, and the estimators are the backtest's too: `tidemill.labelled`, `tidemill.estimators`.
"""

from __future__ import annotations

from tidemill.models.training.gates import Gates
from tidemill.models.training.trainer import Trained, train

__all__ = ["Gates", "Trained", "train"]
