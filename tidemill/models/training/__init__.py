"""Training: a labelled frame becomes a candidate version with a report. Needs scikit-learn.

`slices` says where a model is good, `report` writes it down, `gates` decides about promoting without a person, `trainer` puts them
together. What it shares with the backtest: `tidemill.labelled` (the frame, its split by time), `estimators`, `matrix`, `measures`.
"""

from __future__ import annotations

from tidemill.models.training.gates import Gates
from tidemill.models.training.trainer import Trained, train

__all__ = ["Gates", "Trained", "train"]
