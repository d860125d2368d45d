"""What is freshness worth? One model, trained and tested on a time split, once per age of what its features may know."""

from __future__ import annotations

from tidemill.backtest.result import Backtest, Estimate, Point, Score
from tidemill.backtest.sweep import FRESHNESS, Plan, backtest
from tidemill.labelled import Names, read_labelled

__all__ = ["FRESHNESS", "Backtest", "Estimate", "Names", "Plan", "Point", "Score", "backtest", "read_labelled"]
