"""When a candidate may be promoted without a person: gates that are stated, and told one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.models.manifest import Kind
from tidemill.models.predictor import Matrix

#: Metrics by name; None where there is none.
Measured = dict[str, float | None]


@dataclass(frozen=True)
class Gates:
    """What a candidate must pass.

    `min_rows` test rows, and of a classifier `min_of_class` of each class; `min_gain`: its AUC must be so much above the champion's, with
    a log loss that is no worse; of a regression its RMSE lower by this share. Without a champion the naive baseline is to be beaten so.
    """

    min_rows: int = 1_000
    min_of_class: int = 50
    min_gain: float = 0.001


@dataclass(frozen=True)
class Gate:
    """One of them, as it came out."""

    name: str
    passed: bool
    text: str


def decide(gates: Gates, kind: Kind, y: Matrix, candidate: Measured, rival: Measured | None, rival_name: str) -> list[Gate]:
    """The gates of a candidate, beside that of its golden rows, which it has passed when it was registered.

    `rival` None: there is one, and it could not be compared.
    """
    found = [Gate("rows", len(y) >= gates.min_rows, f"{len(y):,} test rows, {gates.min_rows:,} needed")]
    if kind == "classifier":
        least = int(min(np.sum(y == 0), np.sum(y == 1)))
        found.append(Gate("classes", least >= gates.min_of_class, f"{least:,} test rows of the rarer class, {gates.min_of_class:,} needed"))
    if rival is None:
        found.append(Gate("comparison", passed=False, text=f"{rival_name} could not be compared"))
    elif kind == "classifier":
        gain = (candidate["auc"] or 0.0) - (rival["auc"] or 0.0)
        found.append(Gate("auc", gain >= gates.min_gain, f"AUC {gain:+.5f} against {rival_name}, {gates.min_gain:+g} needed"))
        loss, theirs = _number(candidate["log_loss"]), _number(rival["log_loss"])
        found.append(Gate("log_loss", loss <= theirs, f"log loss {loss:.5f}, {rival_name} has {theirs:.5f}"))
    else:
        mine, theirs = _number(candidate["rmse"]), _number(rival["rmse"])
        wanted = theirs * (1 - gates.min_gain)
        found.append(Gate("rmse", mine <= wanted, f"RMSE {mine:.6g}, at most {wanted:.6g} needed ({rival_name} has {theirs:.6g})"))
    return found


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
