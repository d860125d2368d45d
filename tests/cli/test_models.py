"""Models on the command line: from labels to a champion, and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tidemill as tm

LABELS = "rows.csv"


@pytest.fixture
def labelled(project: Any) -> Any:
    """The project, streamed, with a file of labelled rows: the label follows the amount."""
    assert project.run("apply").code == 0
    project.stream()
    lines = ["card,amount,event_timestamp,late,known"]
    for i in range(400):
        minute, amount = 6 + i % 18, (i * 37 % 100) / 10
        late = int(amount / (15 * minute) * (0.8 + (i * 7919 % 13) / 32) > 0.023)  # the share of what the card has paid, and some noise
        at = f"2026-01-05T00:{minute:02}:{i % 60:02}"
        lines.append(f"{'ab'[i % 2]},{amount},{at}Z,{late},{at}Z")
    project.write(LABELS, "\n".join(lines) + "\n")
    return project


TRAIN = f"train risk --service s --rows {LABELS} --label late --label-time known"


def test_from_labels_to_a_champion_and_back(labelled: Any) -> None:
    ran = labelled.run(f"{TRAIN} --slice card --by ann --why 'first try'")
    assert ran.code == 0, ran.err
    assert re.search(r"^AUC +0\.9\d+ +0\.5$", ran.out, re.MULTILINE), ran.out
    assert re.search(r"^a +\d+ ", ran.out, re.MULTILINE), ran.out
    assert re.search(r"^trained risk 1 on \d+ rows, tested on \d+ from 2026-01-05T00:1\d:\d\d\+00:00 on", ran.out, re.MULTILINE), ran.out
    assert "tidemill model promote risk 1" in ran.out
    assert labelled.run("model promote risk 1 --by ann").out == "risk 1 is champion\n"

    ran = labelled.run(f"{TRAIN} --model hist_gradient_boosting --auto --min-rows 50 --min-of-class 10 --min-gain -1 --json")
    assert ran.json["version"] == "2"
    assert set(ran.json["report"]["metrics"]) == {"candidate", "champion", "naive"}
    assert ran.json["promoted"] is all(g["passed"] for g in ran.json["report"]["gates"])
    if not ran.json["promoted"]:
        assert labelled.run("model promote risk 2 --why 'by hand'").out == "risk 2 is champion (previous 1)\n"

    listed = labelled.run("model list").out.splitlines()
    assert [line.split()[:3] for line in listed[-2:]] == [["risk", "1", "previous"], ["risk", "2", "champion"]]
    assert labelled.run("model").out == labelled.run("model list risk").out
    shown = labelled.run("model show risk@1")
    for part in ("risk 1", "previous", "first try", "ann", "promoted to champion: 1", "auc", "share"):
        assert part in shown.out
    assert labelled.run("model rollback risk --by bob --why odd").out == "risk 1 is champion\n"
    document = labelled.run("model show risk --json").json
    assert (document["manifest"]["version"], document["aliases"], document["problem"]) == ("1", {"champion": "1"}, None)
    assert [e["action"] for e in document["journal"]][-1] == "rollback"
    assert document["journal"][-1]["by"] == "bob"

    store = tm.FeatureStore(labelled.root)
    scores = store.score("risk", [{"card": "a", "amount": 90.0}, {"card": "a", "amount": 0.1}], at="2026-01-05T00:30:00")
    store.close()
    assert scores.label == [1, 0]


def test_models_from_files_and_import_paths_are_registered_with_all_that_is_said_of_them(labelled: Any) -> None:
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from skops.io import dump

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 4))
    dump(LogisticRegression().fit(rows, rows[:, 0] > 0), labelled.root / "model.skops")
    fill = " ".join(f"--fill {f}=0" for f in ("card:count_1h", "card:count_1d", "card:amount_sum_1d", "share"))
    ran = labelled.run(
        f"model register m model.skops --service s {fill} --positive false --threshold 0.3 --fallback 0.2 --max-missing 1 --json"
    )
    made = ran.json
    assert (made["positive"], made["threshold"], made["fallback"], made["max_missing"]) == (False, 0.3, 0.2, 1)
    assert made["fill"]["card__count_1h"] == 0.0
    labelled.write("mine.py", "def score(x):\n    return [0.5] * len(x)\n")
    ran = labelled.run("model register m mine:score --service s --description half")
    assert ran.out.startswith("registered m 2: a classifier of 4 features of s, ")
    assert "nothing" in labelled.run("model show m@2").out
    assert labelled.run("model promote m 2 --as challenger --json").json["aliases"] == {"challenger": "2"}
    labelled.write("mine.py", "def score(x):\n    return [0.25] * len(x)\n")
    shown = labelled.run("model show m@2")
    assert "it cannot be loaded here: the code of mine:score is not what it was" in " ".join(shown.out.split())


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("model show nope", 1, "there is no model 'nope'"),
        ("model promote nope 1", 1, "there is no model 'nope'"),
        ("model rollback nope", 1, "there is no model 'nope'"),
        ("model list a/b", 1, "a model's name must be letters"),
        ("model register m model.pkl --service s", 1, "a pickle, which runs code"),
        ("model register m model.skops --service s", 1, "model.skops cannot be read: No such file"),
        ("model register m mine:score --service nope", 1, "there is no service 'nope'"),
        ("model register m mine:score --service s --fill card", 2, "write FEATURE=NUMBER"),
        ("model register m mine:score --service s --fallback maybe", 2, "--fallback is a score"),
        ("model register m mine:score --service s --kind tree", 2, "classifier or regressor"),
        ("train m --service s --rows nope.csv", 1, "cannot be read: No such file"),
        ("train m --service s --rows features.py", 1, "must end in .parquet, .csv or .jsonl"),
        (f"train m --service s --rows {LABELS}", 1, "no column 'label'"),
        (f"train m --service s --rows {LABELS} --label late --model forest", 1, "there is no model 'forest' of two classes"),
        (f"train m --service nope --rows {LABELS}", 1, "'nope'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(labelled: Any, line: str, code: int, said: str) -> None:
    assert said in labelled.refused(line, code)


def test_the_help_of_each_command_has_an_example(project: Any) -> None:
    for command in ("model", "model register", "model list", "model show", "model promote", "model rollback", "train"):
        assert "Example" in project.run(f"{command} --help").out


def test_before_the_first_model_the_list_says_how_to_make_one(project: Any, event: Callable[..., str]) -> None:
    del event
    assert "no models yet" in project.run("model list").out
    assert project.run("model list --json").json == {"models": []}


def test_the_report_lies_in_the_folder_of_the_version(labelled: Any) -> None:
    assert labelled.run(TRAIN).code == 0
    folder = Path(labelled.root) / ".tidemill/offline/models/risk/1"
    assert sorted(p.name for p in folder.iterdir()) == ["golden.json", "manifest.json", "model.skops", "report.json", "report.md"]
    assert json.loads((folder / "manifest.json").read_text())["metrics"]["auc"] > 0.8
