"""`tidemill backtest`, as somebody runs it; and the page, the picture and the JSON that it leaves."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from tests.backtest.conftest import Walk
from tidemill.cli.app import build


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def project(walked: Walk) -> Path:
    walked.frame.write_parquet(walked.folder.path / "labels.parquet")
    return walked.folder.path


def run(project: Path, *line: str) -> Ran:
    result = CliRunner().invoke(build(), ["backtest", *line, "--project", str(project)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return Ran(result.exit_code, result.stdout, result.stderr)


def labels(project: Path) -> list[str]:
    return ["--labels", str(project / "labels.parquet"), "--model", "logistic_regression"]


class _Addresses(HTMLParser):
    """What a page would fetch or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [v or "" for n, v in attrs if n in ("src", "href", "srcset", "data", "action", "poster")]


def test_it_shows_a_table_and_a_conclusion_and_writes_a_page(project: Path, tmp_path: Path) -> None:
    ran = run(project, "s", *labels(project), "--split", "0.7", "--freshness", "0s,10m,6h,1d", "--out", str(tmp_path / "out"))
    assert ran.code == 0, ran.err
    assert re.search(r"^freshness +AUC +95 % interval +vs 0s", ran.out, re.MULTILINE)
    assert re.search(r"^0s +0\.9\d\d +0\.\d{3} to 0\.\d{3} .* as served", ran.out, re.MULTILINE)
    assert re.search(r"^10m +0\.9\d\d .*\(\+0\.0000\).* hypothetical", ran.out, re.MULTILINE)
    assert "hypothetical at 10m, 6h, 1d: nothing newer than that is known, while windows still end at the request" in ran.out
    assert "left out, because a model takes numbers: v__at_last_1d" in ran.out
    assert re.search(r"trained on \d+ rows, tested on \d+ \(\d\d\.\d% of them positive\); not used: 2 whose label was not known", ran.out)
    assert "Streaming is worth" in ran.out
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert set(files) == {"index.html", "freshness.png", "backtest.json"}
    for file in files.values():
        assert str(file) in ran.out

    picture = files["freshness.png"].read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1296, 691)

    page = files["index.html"].read_text()
    parser = _Addresses()
    parser.feed(page)
    assert [address[:22] for address in parser.found] == ["data:image/png;base64,"]
    assert not parser.tags & {"script", "link", "iframe", "object"}
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"url\(|@import", page)
    conclusion = ran.out[ran.out.index("logistic_regression, s:") :].splitlines()[0]
    assert conclusion in page
    assert json.loads(files["backtest.json"].read_text())["conclusion"] == conclusion


def test_as_json_it_is_one_document_and_the_same_twice(project: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--json", "--freshness", "1d,0s", "--split", "2026-01-10"]
    first, again = (run(project, "s", *labels(project), *out) for _ in range(2))
    assert first == again
    document: dict[str, Any] = json.loads(first.out)
    assert [p["freshness"] for p in document["points"]] == ["0s", "1d"]
    assert document["split"] == "2026-01-10T00:00:00+00:00"
    assert document["rows"] == {"train": 644, "test": 253, "unlabelled": 0, "not_known_at_split": 3}
    day = document["points"][1]
    assert day["hypothetical"] == "nothing newer than 1d is known"
    auc = day["models"]["logistic_regression"]["auc"]
    assert auc["low"] < auc["value"] < auc["high"]
    assert auc["difference"]["high"] < 0
    assert json.loads((tmp_path / "backtest.json").read_text()) == {k: v for k, v in document.items() if k != "files"}


def test_single_features_another_metric_and_aged_values(project: Path, tmp_path: Path) -> None:
    few = ["--split", "0.7", "--freshness", "0s,6h", "--metric", "brier", "--aged", "values", "--out", str(tmp_path)]
    ran = run(project, "v:x_mean_2h", "scaled", *labels(project), *few)
    assert ran.code == 0, ran.err
    assert re.search(r"^freshness +Brier score +95 % interval +vs 0s +its interval +AUC +log loss", ran.out, re.MULTILINE)
    assert "logistic_regression, v:x_mean_2h, scaled: fresh features reach Brier score" in ran.out
    assert "hypothetical at 6h: every value was computed that long before the request" in ran.out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["s", "--split", "2020-01-01"], 1, "no labelled row lies before the split"),
        (["s", "--split", "soon"], 1, "split is 'soon'"),
        (["nobody", "--split", "0.5"], 1, "there is no service, view, feature or on-demand feature 'nobody'"),
        (["s", "--kind", "both"], 2, "say binary or regression"),
        (["s", "--label", "won"], 1, "no column 'won', the label"),
        (["s", "--metric", "accuracy"], 1, "there is no metric 'accuracy' of two classes"),
        (["p", "--knowledge", "arrival"], 1, "source 'plain' has no arrival times"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(project: Path, tmp_path: Path, line: list[str], code: int, said: str) -> None:
    ran = run(project, *line, *labels(project), "--out", str(tmp_path / "out"))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("tidemill: ")
    assert ran.err.count("\n") == 1
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run(project, "s", *labels(project), "--freshness", "0s", "--out", str(tmp_path / "file"))
    assert ran.code == 1
    assert "file cannot be written" in ran.err
