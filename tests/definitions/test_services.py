"""Services, and what a request comes to."""

from __future__ import annotations

from typing import Any

import pytest

from tidemill.aggregations import count, mean
from tidemill.definitions import Definitions, Entity, FeatureService, FeatureView, Request, Source, on_demand, resolve_features
from tidemill.errors import DefinitionError, NotFoundError
from tidemill.types import ColumnType, Timestamp

SOURCE = Source(
    "departures", schema={"origin": str, "carrier": str, "dep_delay": float, "dep_utc": Timestamp}, timestamp="dep_utc", path="d/*.csv"
)
BY_ORIGIN = FeatureView("by_origin", SOURCE, Entity("origin"), [count(windows=["1h", "1d"]), mean("dep_delay", windows=["1d"])])
BY_CARRIER = FeatureView("by_carrier", SOURCE, Entity("carrier"), [count(windows=["1h"])])


@on_demand(inputs=[BY_CARRIER, Request(distance=float)])
def busy(count_1h: Any, distance: Any) -> Any:
    return count_1h / distance


V1 = FeatureService("v1", features=[BY_ORIGIN, busy])
V2 = FeatureService("v2", features=[BY_ORIGIN["dep_delay_mean_1d"], "by_carrier:count_1h", "busy"])
DEFINITIONS = Definitions.collect([BY_ORIGIN, BY_CARRIER, busy, V1, V2])


def test_a_service_comes_to_features_in_order_and_what_they_need() -> None:
    needed = resolve_features("v1", DEFINITIONS)
    assert needed.columns == ("by_origin__count_1h", "by_origin__count_1d", "by_origin__dep_delay_mean_1d", "busy")
    assert [str(ref) for ref in needed.stored] == [
        "by_origin:count_1h",
        "by_origin:count_1d",
        "by_origin:dep_delay_mean_1d",
        "by_carrier:count_1h",
    ]
    assert needed.service == "v1"
    assert needed.views == {"by_origin": BY_ORIGIN, "by_carrier": BY_CARRIER}
    assert needed.keys == {"origin": ColumnType("str"), "carrier": ColumnType("str")}
    assert needed.request == {"distance": ColumnType("float")}
    assert needed.on_demands == (busy,)


@pytest.mark.parametrize(
    ("features", "columns"),
    [
        (V2, ["by_origin__dep_delay_mean_1d", "by_carrier__count_1h", "busy"]),
        (["by_origin:count_1d", "by_origin__count_1h"], ["by_origin__count_1d", "by_origin__count_1h"]),
        ("by_origin:count_1d", ["by_origin__count_1d"]),
        ("busy", ["busy"]),
        ([busy, BY_CARRIER], ["busy", "by_carrier__count_1h"]),
        (["by_carrier", "v2"], ["by_carrier__count_1h", "by_origin__dep_delay_mean_1d", "busy"]),
        (BY_ORIGIN[["count_1h"]], ["by_origin__count_1h"]),
        (BY_ORIGIN.refs[0], ["by_origin__count_1h"]),
        ([BY_ORIGIN["count_1h"], "by_origin:count_1h"], ["by_origin__count_1h"]),
    ],
)
def test_features_are_asked_for_by_name_or_object(features: Any, columns: list[str]) -> None:
    assert list(resolve_features(features, DEFINITIONS).columns) == columns


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("v3", "there is no service, view, feature or on-demand feature 'v3'; there are v1, v2, busy, by_origin"),
        (["by_orign:count_1h"], r"there is no view 'by_orign' \(asked for as 'by_orign:count_1h'\); did you mean 'by_origin'"),
        (["by_origin:cuont_1h"], "view 'by_origin' has no feature 'cuont_1h'; did you mean 'count_1h'"),
        (["by_origin__count_2h"], "view 'by_origin' has no feature 'count_2h'; did you mean"),
        (
            ["by_orign__count_1h"],
            "there is no service, view, feature or on-demand feature 'by_orign__count_1h'; did you mean 'by_origin:count_1h'",
        ),
        ([], "no features were asked for"),
        ([3], "3 names no feature"),
    ],
)
def test_what_nobody_defined_is_not_found_and_the_near_ones_are_named(features: Any, message: str) -> None:
    with pytest.raises(NotFoundError, match=message):
        resolve_features(features, DEFINITIONS)


def test_an_unknown_entity_view_source_or_service_is_not_found() -> None:
    for lookup, kind in [
        (DEFINITIONS.entity, "entity"),
        (DEFINITIONS.view, "view"),
        (DEFINITIONS.source, "source"),
        (DEFINITIONS.service, "service"),
    ]:
        with pytest.raises(NotFoundError, match=f"there is no {kind} 'nobody'; there are "):
            lookup("nobody")
    assert DEFINITIONS.entity("origin") == Entity("origin")
    assert DEFINITIONS.view("by_origin") is BY_ORIGIN
    assert DEFINITIONS.source("departures") is SOURCE
    assert DEFINITIONS.service("v1") is V1


def test_a_service_with_an_unknown_feature_is_refused_with_its_name() -> None:
    with pytest.raises(NotFoundError, match="service 'v3': view 'by_origin' has no feature 'count_2h'"):
        Definitions.collect([BY_ORIGIN, FeatureService("v3", features=["by_origin:count_2h"])])
    with pytest.raises(NotFoundError, match=r"service 'v3': there is no .* 'bussy'; did you mean 'busy'"):
        Definitions.collect([busy, FeatureService("v3", features=["bussy"])])


@pytest.mark.parametrize(
    ("name", "features", "message"),
    [
        ("v 3", [BY_ORIGIN], "a service's name"),
        ("v3", [], "service 'v3': features must be a list"),
        ("v3", BY_ORIGIN, "service 'v3': features must be a list"),
        ("v3", [SOURCE], "service 'v3': a feature is a view"),
        ("v3", ["by_origin:"], "service 'v3': 'by_origin:' is not the name of a feature: write 'view:feature'"),
        (
            "v3",
            [BY_ORIGIN, FeatureView("by_origin", SOURCE, Entity("carrier"), [count(windows=["1h"])])],
            "two different views are named 'by_origin'",
        ),
    ],
)
def test_a_wrong_service_is_refused(name: str, features: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        FeatureService(name, features=features)


def test_one_key_column_in_two_types_is_refused() -> None:
    numbered = Source("numbered", schema={"origin": int, "at": Timestamp}, timestamp="at", path="n.csv")
    other = FeatureView("other", numbered, Entity("numbered_origin", keys=["origin"]), [count(windows=["1h"])])
    with pytest.raises(DefinitionError, match="key of view 'other': 'origin' is a int here and a str elsewhere"):
        resolve_features([BY_ORIGIN, other], Definitions.collect([BY_ORIGIN, other]))


def test_a_request_column_may_be_a_key_too() -> None:
    named = on_demand(inputs=[BY_ORIGIN, Request(origin=str)], name="named")(lambda count_1h, origin: count_1h * (origin == "JFK"))
    needed = resolve_features(named, Definitions.collect([named]))
    assert needed.request == needed.keys == {"origin": ColumnType("str")}


@pytest.mark.parametrize(("name", "what"), [("origin", "a key"), ("distance", "a request column")])
def test_an_on_demand_feature_may_not_be_named_like_a_key_or_a_request_column(name: str, what: str) -> None:
    made = on_demand(inputs=[BY_ORIGIN, Request(distance=float)], name=name)(lambda count_1h, distance: count_1h * distance)
    message = f"on-demand feature '{name}' is named like {what} of the same features: rename it"
    with pytest.raises(DefinitionError, match=message):
        resolve_features(made, Definitions.collect([made]))
    with pytest.raises(DefinitionError, match=message):
        Definitions.collect([FeatureService("s", features=[BY_ORIGIN, made])])


def test_what_a_service_refers_to_is_defined_too() -> None:
    definitions = Definitions.collect([V1])
    assert set(definitions.views) == {"by_origin", "by_carrier"}
    assert set(definitions.on_demands) == {"busy"}
    assert set(definitions.sources) == {"departures"}
    assert set(definitions.entities) == {"origin", "carrier"}


def test_two_definitions_of_one_name_are_refused_but_the_same_entity_may_be_written_twice() -> None:
    again = FeatureView("again", SOURCE, Entity("origin"), [count(windows=["1h"])])
    assert set(Definitions.collect([BY_ORIGIN, again]).entities) == {"origin"}
    other = FeatureView("other", SOURCE, Entity("origin", keys=["carrier"]), [count(windows=["1h"])])
    with pytest.raises(DefinitionError, match="two definitions of the entity 'origin'"):
        Definitions.collect([BY_ORIGIN, other])
    with pytest.raises(DefinitionError, match="two definitions of the view 'by_origin': give each its own name"):
        Definitions.collect([BY_ORIGIN, FeatureView("by_origin", SOURCE, Entity("origin"), [count(windows=["1h"])])])
    with pytest.raises(DefinitionError, match=r"'by_origin' names a view and a service: .* rename one"):
        Definitions.collect([FeatureService("by_origin", features=[BY_ORIGIN])])


def test_an_on_demand_feature_may_not_be_named_like_an_output_column() -> None:
    clash = on_demand(inputs=[BY_ORIGIN], name="by_origin__count_1h")(lambda count_1h: count_1h)
    with pytest.raises(DefinitionError, match="'by_origin__count_1h' has the name of a view's output column"):
        Definitions.collect([clash])


def test_definitions_survive_json_but_for_code() -> None:
    again = Definitions.from_spec(DEFINITIONS.spec())
    assert again.sources == DEFINITIONS.sources
    assert again.views == DEFINITIONS.views
    assert again.entities == DEFINITIONS.entities
    assert again.spec()["services"] == DEFINITIONS.spec()["services"]
    assert again.views["by_origin"].source is again.views["by_carrier"].source
    assert resolve_features("by_origin", again).columns == resolve_features("by_origin", DEFINITIONS).columns
    assert DEFINITIONS.spec()["on_demands"] == [busy.spec()]
    with pytest.raises(NotFoundError, match=r"service 'v1': there is no .* 'busy'"):
        resolve_features("v1", again)
