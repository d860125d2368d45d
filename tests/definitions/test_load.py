"""Definitions files: run apart, collected whole, refused with file and line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tidemill.definitions import load_definitions, resolve_features
from tidemill.errors import DefinitionError, ExpressionError, NotFoundError

HEAD = """\
from tidemill.aggregations import count, mean
from tidemill.definitions import Entity, FeatureService, FeatureView, Request, Source, on_demand
from tidemill.types import Timestamp

departures = Source("departures", schema={"origin": str, "dep_delay": float, "at": Timestamp}, timestamp="at", path="d/*.csv")
"""

#: What `import tidemill as tm` gives, put together from the packages that define it.
IMPORT = """\
from types import SimpleNamespace
from tidemill import aggregations, definitions, types

tm = SimpleNamespace(**{name: value for module in (aggregations, definitions, types) for name, value in vars(module).items()})
"""


def written(directory: Path, text: str, name: str = "features.py") -> Path:
    file = directory / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_design_documents_example_works_as_shown(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
import numpy as np

IMPORT

departures = tm.Source(
    "departures",
    schema={"flight_id": int, "carrier": str, "origin": str, "tailnum": str, "dep_delay": float, "dep_utc": tm.Timestamp},
    timestamp="dep_utc",
    event_id="flight_id",
    arrival="known_utc",
    max_ahead="5m",
    topic="departures",
    path="data/departures/*.parquet",
)

origin_departures = tm.FeatureView(
    "origin_departures",
    source=departures,
    entity=tm.Entity("origin", keys=["origin"]),
    max_lag="1m",
    aggregations=[
        tm.count(windows=["1h", "1d", "30d"]),
        tm.mean("dep_delay", windows=["30m", "1h", "1d", "60d"]),
        tm.quantile("dep_delay", 0.9, windows=["1d", "30d"]),
        tm.count(where="dep_delay > 15", name="late", windows=["1h", "1d"]),
    ],
)

@tm.on_demand(inputs=[origin_departures, tm.Request(distance=float)])
def long_haul_late_share(late_1h, count_1h, distance):
    return np.where(distance > 1000, late_1h / count_1h, 0.0)

delay_v1 = tm.FeatureService("delay_v1", features=[origin_departures, long_haul_late_share])
""".replace("IMPORT", IMPORT),
    )
    definitions = load_definitions(file)
    needed = resolve_features("delay_v1", definitions)
    assert list(needed.columns) == [
        *(f"origin_departures__count_{window}" for window in ("1h", "1d", "30d")),
        *(f"origin_departures__dep_delay_mean_{window}" for window in ("30m", "1h", "1d", "60d")),
        *(f"origin_departures__dep_delay_p90_{window}" for window in ("1d", "30d")),
        *(f"origin_departures__late_{window}" for window in ("1h", "1d")),
        "long_haul_late_share",
    ]
    assert (list(needed.keys), list(needed.request)) == (["origin"], ["distance"])
    columns = {column: np.array([2.0]) for column in needed.columns} | {"distance": np.array([2475.0])}
    assert definitions.on_demands["long_haul_late_share"].evaluate(columns) == [1.0]


def test_definitions_are_found_in_names_lists_and_dicts(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        HEAD
        + """
views = [FeatureView(f"by_origin_{w}", departures, Entity("origin"), [count(windows=[w])]) for w in ("1h", "1d")]
more = {"all": FeatureView("all_delays", departures, Entity("origin"), [mean("dep_delay", windows=["1h"])])}
same = departures
_hidden = FeatureService("hidden", features=views)
""",
    )
    definitions = load_definitions(file)
    assert list(definitions.views) == ["by_origin_1h", "by_origin_1d", "all_delays"]
    assert list(definitions.sources) == ["departures"]
    assert list(definitions.services) == ["hidden"]


def test_modules_beside_the_file_can_be_imported_and_leave_nothing_behind(tmp_path: Path) -> None:
    written(tmp_path, HEAD, "my_sources.py")
    text = "from my_sources import *\nview = FeatureView('by_origin', departures, Entity('origin'), [count(windows=['1h'])])\n"
    file = written(tmp_path, text)
    search_path = list(sys.path)
    assert list(load_definitions(file).views) == ["by_origin"]
    assert sys.path == search_path
    assert "my_sources" not in sys.modules
    assert not (tmp_path / "__pycache__").exists()


def test_two_projects_may_have_modules_of_one_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, HEAD.replace('Source("departures"', f'Source("{name}"'), "my_sources.py")
        written(tmp_path / name, "from my_sources import departures\n")
    assert list(load_definitions(tmp_path / "one/features.py").sources) == ["one"]
    assert list(load_definitions(tmp_path / "two/features.py").sources) == ["two"]


def test_a_changed_file_and_a_changed_module_beside_it_are_seen(tmp_path: Path) -> None:
    demand = "@on_demand(inputs=[Request(x=float)])\ndef f(x):\n    return x + 1\n"
    written(tmp_path, HEAD, "my_sources.py")
    file = written(tmp_path, HEAD + "from my_sources import departures\n" + demand)
    before = load_definitions(file)
    written(tmp_path, HEAD.replace('Source("departures"', 'Source("arrivals"'), "my_sources.py")
    written(tmp_path, HEAD + "from my_sources import departures\n" + demand.replace("+ 1", "+ 2"))
    after = load_definitions(file)
    assert (list(before.sources), list(after.sources)) == (["departures"], ["arrivals"])
    assert before.on_demands["f"].source_hash != after.on_demands["f"].source_hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\ny = 2\n", r"features.py:1: SyntaxError: .*never closed"),
        ("\n  x = 1\n", r"features.py:2: IndentationError: "),
        ("x = 1\ny = x.nothing\n", r"features.py:2: AttributeError: 'int' object has no attribute 'nothing'"),
        ("import numpyy\n", r"features.py:1: ModuleNotFoundError: No module named 'numpyy'"),
        ("def f():\n    raise ValueError('no')\n\nf()\n", r"features.py:2: ValueError: no"),
        ("import sys\nsys.exit(3)\n", r"features.py:2: SystemExit: 3"),
        ("x = '\0'\n", r"features.py: not a Python file .*null bytes|features.py:1: SyntaxError: .*null bytes"),
    ],
)
def test_a_file_that_does_not_run_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(DefinitionError, match=message) as caught:
        load_definitions(file)
    assert str(caught.value).startswith(str(file))
    assert "Traceback" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "\nv = FeatureView('v', departures, Entity('orign'), [count(windows=['1h'])])",
            DefinitionError,
            "py:7: view 'v': entity 'orign'",
        ),
        (
            "v = FeatureView('v', departures, Entity('origin'), [mean('delay', windows=['1h'])])",
            DefinitionError,
            r"features.py:6: view 'v', delay_mean_1h: .*no column 'delay'",
        ),
        ("c = count(windows=['1500ms'])", DefinitionError, "features.py:6: window '1500ms': no rung divides it"),
        ("c = count(windows=['1h'], hop='7m')", DefinitionError, "features.py:6: hop '7m' of window '1h': choose one of"),
        (
            "v = FeatureView('v', departures, Entity('origin'), [count(windows=['1h'], where='dep_delay >')])",
            ExpressionError,
            "features.py:6: view 'v', count_1h: where='dep_delay >': does not parse",
        ),
        (
            "v = FeatureView('v', departures, Entity('origin'), [count(windows=['1h'])])\ns = FeatureService('s', [v['count_2h']])",
            NotFoundError,
            "features.py:7: view 'v' has no feature 'count_2h'; did you mean 'count_1h'",
        ),
        ("s = FeatureService('s', features=['v:count_1h'])", NotFoundError, "features.py: service 's': there is no view 'v'"),
        (
            "more = Source('departures', schema={'at': Timestamp}, timestamp='at', path='x')",
            DefinitionError,
            "features.py: two definitions of the source 'departures'",
        ),
    ],
)
def test_a_wrong_definition_is_refused_with_its_file_and_line(tmp_path: Path, text: str, kind: type[Exception], message: str) -> None:
    file = written(tmp_path, HEAD + text + "\n")
    with pytest.raises(kind, match=message) as caught:
        load_definitions(file)
    assert str(caught.value).startswith(str(file))


def test_an_error_in_a_module_beside_the_file_names_that_module(tmp_path: Path) -> None:
    file = written(tmp_path, "import my_sources\n")
    written(tmp_path, "x = 1\ny = nothing\n", "my_sources.py")
    with pytest.raises(DefinitionError, match=r"my_sources.py:2: NameError"):
        load_definitions(file)
    written(tmp_path, "x = (\n", "my_sources.py")
    with pytest.raises(DefinitionError, match=r"my_sources.py:1: SyntaxError"):
        load_definitions(file)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"the definitions file .*features.py does not exist; .* under \[project\] definitions"):
        load_definitions(tmp_path / "features.py")
    with pytest.raises(DefinitionError, match="cannot be read"):
        load_definitions(tmp_path)


def test_a_file_without_definitions_defines_nothing(tmp_path: Path) -> None:
    definitions = load_definitions(written(tmp_path, "x = 1\n"))
    assert not definitions.views
    assert not definitions.sources
