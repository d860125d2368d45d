"""What came of every flight: the question that a model is asked at scheduled departure, its answer, and when that became known.

One row per flight, in the order of the table: the keys and request columns of the service `delay_at_departure`, `event_timestamp` (the
scheduled departure, UTC), `label` (it arrived 15 minutes late or more) and `label_time`: when the first message of the arrival came, so a
label is never known before the log knows it. A flight that was cancelled or diverted never arrived: its label and its time are null, and
nothing is trained or tested on it. It is an event all the same, and the features count it.

    python labels.py [FILE]     # writes data/labels.parquet, 336,776 rows
"""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl

from tidemill.apps.examples.flights.make_logs import LATE, Delivery, arrivals, delivered, read_flights

_YEAR = Delivery()


def labelled(delivery: Delivery = _YEAR, *, lead_minutes: int = 0) -> pl.DataFrame:
    """The frame. With `lead_minutes` the question is asked so long before the scheduled departure."""
    flights = read_flights(delivery)
    known = (
        delivered(arrivals(flights), delivery)
        .group_by("flight_id")
        .agg(label_time=pl.col("known_utc").str.to_datetime(time_zone="UTC", time_unit="us").min())
    )
    return flights.join(known, on="flight_id", how="left", maintain_order="left").select(
        "flight_id",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        pl.col("distance").cast(pl.Float64),
        scheduled_hour=pl.col("sched_dep_time") // 100 + pl.col("sched_dep_time") % 100 / 60,  # of the local day
        event_timestamp=pl.col("scheduled").dt.cast_time_unit("us") - pl.duration(minutes=lead_minutes),
        label=pl.col("arr_delay") >= LATE,
        label_time="label_time",
    )


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data" / "labels.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    frame = labelled()
    frame.write_parquet(target)
    print(f"{len(frame):,} flights, {frame['label'].sum():,} of them late, are in {target}")
