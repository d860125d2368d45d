"""Everything that requests have compiled, at once: before the first of them, or while an image is built.

python -m tidemill.kernel.warm
"""

from __future__ import annotations

from tidemill import aggregations as ta
from tidemill.kernel.bundle import MANY, Bundle
from tidemill.types import ColumnType


def compile_loops() -> None:
    """Compile what is not compiled yet, and load the rest: seconds on a new machine, then a fraction of one.

    >>> compile_loops()
    """
    windows = ["1h", "1d"]
    bundle = Bundle(
        "warm",
        schema={"k": ColumnType("str"), "x": ColumnType("float"), "n": ColumnType("int")},
        event_id=None,
        keys=["k"],
        where=None,
        aggregations=[
            ta.count(windows=windows),
            ta.mean("x", windows=windows),
            ta.sum("n", windows=windows),
            ta.stddev("x", windows=windows),
            ta.max("x", windows=windows),
            ta.last("x", windows=windows),
            ta.quantile("x", 0.5, windows=windows),
            ta.approx_count_distinct("x", windows=windows),
        ],
    )
    for entities in (1, MANY):
        evaluated = bundle.evaluate(0, {table: [None] * entities for table in range(len(bundle.tables))})
        for aggregation in bundle.aggregations:
            for window in aggregation.windows:
                evaluated.values(aggregation, window)


if __name__ == "__main__":
    compile_loops()
