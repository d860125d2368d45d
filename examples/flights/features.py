"""Will a flight arrive late? What a model needs to know, at the flight's scheduled departure.

Two logs of events, six views over them, and a service that lists what one model reads. Everything else (the stream, the batch
job, a request, a training set) follows from this file, and all of them return the same numbers.
"""

import numpy as np

import tidemill as tm

# ---- sources: what happens, and when it became known -------------------------------------------------------------------------------

departures = tm.Source(
    "departures",
    schema={
        "flight_id": int,
        "carrier": str,
        "origin": str,
        "dest": str,
        "tailnum": str,
        "dep_delay": float,  # minutes; null for a cancelled flight
        "cancelled": bool,
        "dep_utc": tm.Timestamp,  # the actual departure; of a cancelled flight, the scheduled one
    },
    timestamp="dep_utc",
    event_id="flight_id",
    arrival="known_utc",  # when the message came: usually a minute or two later, sometimes days
    max_ahead="5m",
    topic="departures",  # the log, where tidemill.toml names brokers
    path="data/departures/partition=*/*.jsonl",
)

arrivals = tm.Source(
    "arrivals",
    schema={
        "flight_id": int,
        "carrier": str,
        "origin": str,
        "dest": str,
        "tailnum": str,
        "air_time": int,  # minutes in the air
        "arr_delay": float,  # minutes
        "late": bool,  # by 15 minutes or more: the label of the learner
        "arr_utc": tm.Timestamp,  # the actual arrival
    },
    timestamp="arr_utc",
    event_id="flight_id",
    arrival="known_utc",
    max_ahead="5m",
    topic="arrivals",
    path="data/arrivals/partition=*/*.jsonl",
)

# ---- views over departures ---------------------------------------------------------------------------------------------------------

# How things go at the airport: the last half hour says more than the last month, and a model may have both.
origin_departures = tm.FeatureView(
    "origin_departures",
    source=departures,
    entity=tm.Entity("origin", keys=["origin"]),
    max_lag="1m",
    aggregations=[
        tm.count(windows=["1h", "1d", "30d"]),  # count_1h, ...
        tm.mean("dep_delay", windows=["30m", "1h", "1d", "60d"]),  # dep_delay_mean_30m, ...
        tm.quantile("dep_delay", 0.9, windows=["1d", "30d"]),  # dep_delay_p90_1d, ...
        tm.count(where="dep_delay > 15", name="late", windows=["1h", "1d"]),  # late_1h, ...: the filter is an SQL expression
        tm.count(where="cancelled", name="cancelled", windows=["1h", "1d"]),
        tm.approx_count_distinct("tailnum", windows=["1d", "7d"]),  # tailnum_approx_count_distinct_1d, ...
    ],
)

# How punctual the airline is: its typical delay, and how far that varies.
carrier_departures = tm.FeatureView(
    "carrier_departures",
    source=departures,
    entity=tm.Entity("carrier", keys=["carrier"]),
    max_lag="1m",
    where="not cancelled",
    aggregations=[
        tm.count(windows=["1d", "7d"]),
        tm.mean("dep_delay", windows=["1d", "7d", "30d"]),
        tm.stddev("dep_delay", windows=["1d", "7d"]),
        tm.max("dep_delay", windows=["1d"]),
        tm.quantile("dep_delay", 0.5, windows=["7d"]),
    ],
)

# Where the aircraft has been. A flight that was cancelled before it had an aircraft has no tailnum: for this view it is a dead
# letter, kept with its reason and counted, and the views above have it all the same.
aircraft_departures = tm.FeatureView(
    "aircraft_departures",
    source=departures,
    entity=tm.Entity("aircraft", keys=["tailnum"]),
    max_lag="1m",
    aggregations=[
        tm.count(windows=["1d", "7d", "lifetime"]),
        tm.last("origin", windows=["7d"]),
        tm.last_n("dep_delay", 3, windows=["7d"]),  # dep_delay_last3_7d: a list, the latest first
        tm.max("dep_delay", windows=["1d"]),
    ],
)

# ---- views over arrivals -----------------------------------------------------------------------------------------------------------

# Where the aircraft is, and how late it came: a late arrival is the next late departure.
aircraft_arrivals = tm.FeatureView(
    "aircraft_arrivals",
    source=arrivals,
    entity=tm.Entity("aircraft", keys=["tailnum"]),
    max_lag="1m",
    aggregations=[
        tm.last("dest", windows=["7d"]),
        tm.last("arr_delay", windows=["1d"]),
        tm.last("arr_utc", windows=["7d"]),
        tm.mean("arr_delay", windows=["1d", "30d"]),
        tm.sum("air_time", windows=["1d", "lifetime"]),  # an int column adds up to an int
    ],
)

route_arrivals = tm.FeatureView(
    "route_arrivals",
    source=arrivals,
    entity=tm.Entity("route", keys=["origin", "dest"]),
    max_lag="1m",
    aggregations=[
        tm.count(windows=["7d"]),
        tm.mean("arr_delay", windows=["7d", "60d"]),
        tm.min("air_time", windows=["30d"]),
        tm.stddev("air_time", windows=["30d"]),
        tm.approx_count_distinct("carrier", windows=["30d"]),
    ],
)

destination_arrivals = tm.FeatureView(
    "destination_arrivals",
    source=arrivals,
    entity=tm.Entity("destination", keys=["dest"]),
    max_lag="1m",
    aggregations=[
        tm.count(windows=["1h", "1d"]),
        tm.count(where="arr_delay > 15", name="late", windows=["1h", "1d"]),
        tm.mean("arr_delay", windows=["3h", "1d"]),
        tm.quantile("arr_delay", 0.9, windows=["7d"]),
    ],
)

# ---- what is computed when the request is there ------------------------------------------------------------------------------------


# Parameters are short names of features where those are unique among the inputs, else view__feature; or columns of the request.
# They are NumPy arrays, of length 1 for one row; null is NaN, and whatever is not finite in the result is null.
@tm.on_demand(inputs=[origin_departures, tm.Request(distance=float)])
def long_haul_late_share(late_1h, count_1h, distance):
    return np.where(distance > 1000, late_1h / count_1h, 0.0)


@tm.on_demand(inputs=[aircraft_arrivals, carrier_departures])
def aircraft_behind_its_carrier(arr_delay_last_1d, dep_delay_mean_1d):
    return arr_delay_last_1d - dep_delay_mean_1d


@tm.on_demand(inputs=[tm.Request(scheduled_hour=float)])
def hour_of_day(scheduled_hour):  # delays pile up until the evening
    return scheduled_hour


@tm.on_demand(inputs=[tm.Request(distance=float)])
def miles(distance):
    return distance


@tm.on_demand(inputs=[origin_departures])
def origin_late_share(late_1h, count_1h):  # of the last hour's departures; null where there were none
    return late_1h / count_1h


@tm.on_demand(inputs=[destination_arrivals])
def destination_late_share(late_1h, count_1h):
    return late_1h / count_1h


# ---- the list that one model reads -------------------------------------------------------------------------------------------------

delay_v1 = tm.FeatureService(
    "delay_v1",
    features=[
        origin_departures,
        carrier_departures,
        aircraft_departures,
        aircraft_arrivals,
        route_arrivals,
        destination_arrivals,
        long_haul_late_share,
        aircraft_behind_its_carrier,
    ],
)

# What a model is trained on that says, at scheduled departure, whether a flight will arrive late: see labels.py. A model takes numbers, so
# the text, the lists and the instants above stay out.
delay_at_departure = tm.FeatureService(
    "delay_at_departure",
    features=[
        origin_departures[
            "count_1h",
            "dep_delay_mean_30m",
            "dep_delay_mean_1h",
            "dep_delay_mean_1d",
            "dep_delay_mean_60d",
            "dep_delay_p90_1d",
            "late_1h",
            "late_1d",
            "cancelled_1h",
            "cancelled_1d",
        ],
        carrier_departures["dep_delay_mean_1d", "dep_delay_mean_7d", "dep_delay_mean_30d", "dep_delay_stddev_1d", "dep_delay_p50_7d"],
        aircraft_departures["count_1d", "count_7d", "dep_delay_max_1d"],
        aircraft_arrivals["arr_delay_last_1d", "arr_delay_mean_1d", "arr_delay_mean_30d", "air_time_sum_1d"],
        route_arrivals["count_7d", "arr_delay_mean_7d", "arr_delay_mean_60d"],
        destination_arrivals["count_1h", "late_1h", "late_1d", "arr_delay_mean_3h", "arr_delay_mean_1d", "arr_delay_p90_7d"],
        hour_of_day,
        miles,
        origin_late_share,
        destination_late_share,
        aircraft_behind_its_carrier,
    ],
)
