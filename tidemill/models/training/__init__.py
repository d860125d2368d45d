"""Training: a labelled frame becomes a candidate version with a report. Needs scikit-learn.

`labelled` reads the frame and splits it by time, `estimators` makes models, `measures` says how good they are, `report` writes it
down, `gates` decides about promoting without a person, `trainer` puts them together.
"""

from __future__ import annotations

from tidemill.models.training.gates import Gates
from tidemill.models.training.trainer import Trained, train

__all__ = ["Gates", "Trained", "train"]
