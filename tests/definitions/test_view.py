"""Feature views: names, types and hashes of features."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tidemill.aggregations import count, first, last_n, mean, quantile
from tidemill.aggregations import sum as total
from tidemill.definitions import Entity, FeatureRef, FeatureView, Source
from tidemill.errors import DefinitionError, ExpressionError, NotFoundError
from tidemill.times import HOUR, MINUTE, SECOND, Window
from tidemill.types import ColumnType, Timestamp

DEPARTURES = Source(
    "departures",
    schema={"flight_id": int, "origin": str, "carrier": str, "dep_delay": float, "dep_utc": Timestamp},
    timestamp="dep_utc",
    path="departures/*.parquet",
)
LATE = count(where="dep_delay > 15", name="late", windows=["1h", "1d"])


def view(*aggregations: Any, **changes: Any) -> FeatureView:
    given = {"name": "by_origin", "source": DEPARTURES, "entity": Entity("origin"), "aggregations": list(aggregations)}
    return FeatureView(**given | changes)


def test_features_are_named_column_function_window() -> None:
    departures = view(count(windows=["1h", "30d"]), mean("dep_delay", windows=["30m"]), quantile("dep_delay", 0.9, windows=["1d"]), LATE)
    assert list(departures.features) == ["count_1h", "count_30d", "dep_delay_mean_30m", "dep_delay_p90_1d", "late_1h", "late_1d"]
    assert departures.refs[0] == FeatureRef("by_origin", "count_1h")
    assert (str(departures.refs[0]), departures.refs[0].column) == ("by_origin:count_1h", "by_origin__count_1h")


def test_a_feature_has_its_aggregation_window_and_type() -> None:
    departures = view(count(windows=["1h"]), first("carrier", windows=["lifetime"]), total("flight_id", windows=["1d"]))
    assert [feature.type for feature in departures.features.values()] == [ColumnType("int"), ColumnType("str"), ColumnType("int")]
    aggregation, window, _ = departures.features["carrier_first_lifetime"]
    assert (aggregation.column, window) == ("carrier", Window.parse("lifetime"))


def test_two_features_of_one_name_are_refused_with_the_hint_to_name_them() -> None:
    with pytest.raises(DefinitionError, match=r"view 'by_origin' has two features named 'count_1h': .* name='...'"):
        view(count(windows=["1h"]), count(windows=["1h"], where="dep_delay > 15"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "by origin"}, "a view's name must be letters"),
        ({"name": "by__origin"}, "view 'by__origin': a view's name has no '__'"),
        ({"name": "by_origin_"}, "view 'by_origin_': .* rename it"),
        ({"source": "departures"}, "view 'by_origin': source must be a tidemill.Source; got 'departures'"),
        ({"entity": "origin"}, r"view 'by_origin': entity must be a tidemill.Entity, such as Entity\('card'\)"),
        ({"entity": Entity("orign")}, "view 'by_origin': entity 'orign': key 'orign' is not a column .* did you mean 'origin'"),
        ({"entity": Entity("d", keys=["dep_delay"])}, "view 'by_origin': entity 'd': key 'dep_delay' is a float"),
        ({"aggregations": []}, "view 'by_origin': aggregations must be a list"),
        ({"aggregations": ["count_1h"]}, "view 'by_origin': 'count_1h' is not an aggregation"),
        ({"aggregations": [mean("dep_dealy", windows=["1h"])]}, "view 'by_origin', dep_dealy_mean_1h: .*no column 'dep_dealy'"),
        ({"aggregations": [mean("origin", windows=["1h"])]}, "view 'by_origin', origin_mean_1h: "),
        ({"aggregations": [count(windows=["1h"], name="late flights")]}, "view 'by_origin': a feature's name .* got 'late flights_1h'"),
        ({"max_lag": "soon"}, "view 'by_origin': max_lag: 'soon' is not a duration"),
        ({"max_lag": "0s"}, "view 'by_origin': max_lag must be more than nothing"),
        ({"hop": "5m"}, "view 'by_origin': hop '5m' is not a rung: choose one of .*10m"),
        ({"hop": "1h"}, "view 'by_origin': hop '1h' would change nothing: every window's own is 1m or finer"),
    ],
)
def test_a_wrong_view_is_refused_with_its_name_and_the_fix(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        view(**{"aggregations": [count(windows=["1h"])]} | changes)


def test_a_window_that_no_rung_divides_is_refused() -> None:
    with pytest.raises(DefinitionError, match="window '1500ms': no rung divides it"):
        count(windows=["1500ms"])


def test_a_wrong_filter_is_refused_with_the_view_and_the_feature() -> None:
    with pytest.raises(ExpressionError, match="view 'by_origin': where='dep_delay >': does not parse"):
        view(count(windows=["1h"]), where="dep_delay >")
    with pytest.raises(
        ExpressionError, match=r"view 'by_origin', late_1h: where='delay > 15'.* no column 'delay'; did you mean 'dep_delay'"
    ):
        view(count(windows=["1h"], where="delay > 15", name="late"))


def test_a_views_hop_makes_wider_hops_finer_and_leaves_the_rest() -> None:
    fine = view(count(windows=["1m", "1h", "30d", "lifetime"]), mean("dep_delay", windows=["1d"], hop="10s"), hop="1m")
    assert {name: feature.window.hop for name, feature in fine.features.items() if feature.window.length is not None} == {
        "count_1m": SECOND,
        "count_1h": MINUTE,
        "count_30d": MINUTE,
        "dep_delay_mean_1d": 10 * SECOND,
    }
    assert fine.features["count_lifetime"].window == Window.parse("lifetime")
    assert view(count(windows=["1d"])).features["count_1d"].window.hop == HOUR


def test_features_are_selected_by_their_short_names() -> None:
    departures = view(count(windows=["1h"]), LATE)
    assert departures["count_1h"].features == ("count_1h",)
    assert departures[["late_1d", "count_1h"]] == departures.select("late_1d", "count_1h")
    assert departures["late_1h"].refs == (FeatureRef("by_origin", "late_1h"),)
    with pytest.raises(NotFoundError, match="view 'by_origin' has no feature 'cuont_1h'; did you mean 'count_1h'"):
        departures["cuont_1h"]


def test_a_view_survives_json() -> None:
    departures = view(
        count(windows=["1h", "lifetime"]),
        LATE,
        quantile("dep_delay", 0.9, windows=["1d"]),
        last_n("carrier", 5, windows=["1d"]),
        where="carrier <> 'XX'",
        max_lag="1m",
        hop="10s",
        description="per airport",
    )
    again = FeatureView.from_spec(json.loads(json.dumps(departures.spec())))
    assert again == departures
    assert hash(again) == hash(departures)
    assert again.digest == departures.digest
    assert list(again.features) == list(departures.features)


def test_the_digest_is_of_the_numbers() -> None:
    departures = view(LATE, count(windows=["1h"]))
    late_again = count(where="dep_delay > 15", name="late", windows=["1d", "1h"])
    assert view(count(windows=["1h"]), late_again, max_lag="1m", description="x").digest == departures.digest
    changed = [
        view(LATE, count(windows=["1h"]), where="carrier = 'AA'"),
        view(LATE, count(windows=["1h"]), entity=Entity("carrier")),
        view(LATE, count(windows=["2h"])),
        view(LATE, count(windows=["1h"], hop="1s")),
        view(count(where="dep_delay > 16", name="late", windows=["1h", "1d"]), count(windows=["1h"])),
        view(LATE),
    ]
    assert len({other.digest for other in [departures, *changed]}) == 7


def test_an_added_aggregation_leaves_the_hash_of_the_others() -> None:
    before, after = view(LATE), view(count(windows=["1h"]), LATE)
    assert before.aggregation_digest(LATE) == after.aggregation_digest(LATE)
    renamed = count(where="dep_delay > 15", name="delayed", windows=["1h", "1d"])
    assert view(renamed).aggregation_digest(renamed) == before.aggregation_digest(LATE)


def test_a_column_of_another_type_changes_the_hash_of_what_reads_it() -> None:
    other = Source("departures", schema={**DEPARTURES.schema, "dep_delay": int}, timestamp="dep_utc", path="x")
    plain = count(windows=["1h"])
    assert view(plain, source=other).aggregation_digest(plain) == view(plain).aggregation_digest(plain)
    assert view(LATE, source=other).aggregation_digest(LATE) != view(LATE).aggregation_digest(LATE)
