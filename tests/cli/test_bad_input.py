"""Whatever is wrong is said in one line on stderr, with exit code 1 (2: called wrongly), and never with a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from tidemill.errors import LogChangedError

HEAD = """\
import tidemill as tm
tx = tm.Source("tx", schema={"id": int, "card": str, "amount": float, "at": tm.Timestamp}, timestamp="at", path="data/*.jsonl")
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (1,\n", r"features\.py:1: SyntaxError: '\(' was never closed"),
        (
            HEAD + "v = tm.FeatureView('v', tx, tm.Entity('card'), [tm.sum('amuont', windows=['1h'])])",
            r"features\.py:3: view 'v'.* no column 'amuont'",
        ),
        (HEAD + "v = tm.FeatureView('v', tx, tm.Entity('cadr'), [tm.count(windows=['1h'])])", r"entity 'cadr'.*did you mean 'card'"),
        (HEAD + "v = tm.FeatureView('v', tx, tm.Entity('card'), [tm.count(windows=['1500ms'])])", r"window '1500ms': no rung divides it"),
        (
            HEAD + "v = tm.FeatureView('v', tx, tm.Entity('card'), [tm.count(windows=['1h'], where='amount >')])",
            r"where='amount >': does not parse",
        ),
        (HEAD + "s = tm.FeatureService('s', ['v:count_1h'])", r"service 's': there is no view 'v'"),
        ("raise KeyError('a\\nb')", r"features\.py:1: KeyError"),
    ],
)
def test_a_wrong_definitions_file_is_refused_by_plan_and_apply(project: Any, text: str, said: str) -> None:
    project.write("features.py", text + "\n")
    for command in ("plan", "apply", "plan --json"):
        assert re.search(said, project.refused(command))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("get nope card=a", "there is no service, view, feature or on-demand feature 'nope'"),
        ("get card:count_2h card=a", "view 'card' has no feature 'count_2h'; did you mean 'count_1h'"),
        ("get crad:count_1h card=a", "there is no view 'crad' (asked for as 'crad:count_1h'); did you mean 'card'?"),
        ("get s card=a", "these features also need amount (float): add amount=..."),
        ("get s", "these features also need card (str), amount (float): add card=... amount=..."),
        ("get s cadr=a amount=1", "these features have no key and no request column 'cadr'; they take card, amount"),
        ("get s card=a amount=much", "amount=much: amount is of type float"),
        ("get s --row '{\"card\":'", "is no row in JSON"),
        ('get s --row \'{"card": "a", "amount": 1, "card": "b"}\'', "is no row in JSON: card is given twice"),
        ("get s --row '[1]'", "is not a JSON object"),
        ('get s --row \'{"card": 7, "amount": 1}\'', "key 'card' is 7 (int): give a value of type str"),
        ('get s --row \'{"card": null, "amount": 1}\'', "a request row has no key 'card'"),
        (
            'get share card=a amount=1 --at 2026-01-05T12:00:00 --row \'{"card": "a", "amount": "1"}\'',
            "'amount' must hold values of type float; got '1'",
        ),
        ("get s --file nothing.csv", "--file nothing.csv cannot be read"),
        ("get s --file tidemill.parquet", "--file tidemill.parquet"),
        ("batch --source nope", "there is no applied source 'nope'; there are tx"),
        ("batch --rollback tx", "has no version to roll back"),
        ("batch --every soon", "'soon' is not a duration"),
        ("dead-letters list nope", "there is no applied source 'nope'"),
        ("dead-letters show tx 7", "tx has no dead letter at partition 0, offset 7"),
        ("dead-letters replay tx --to new.csv", "source 'tx' is jsonl, so the file that is to join its log must end in .jsonl"),
        ("dead-letters replay tx --to data/0.jsonl", "1.jsonl comes after it in partition 0 of 'tx'"),
        ("dead-letters replay tx", "source 'tx' is read from files: say which one is to hold the letters, with --to FILE"),
    ],
)
def test_a_request_that_cannot_be_answered_says_what_is_wrong(project: Any, command: str, said: str) -> None:
    project.run("apply")
    assert said in project.refused(command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("get", "Missing argument"),
        ("get s --at never", "--at 'never' is not an instant"),
        ("get card=a", "name a service, a view or view:feature first"),
        ("get s --file tidemill.toml", "the name must end in .jsonl, .csv or .parquet"),
        ("frobnicate", "No such command 'frobnicate'"),
        ("statsu", "Did you mean 'status'?"),
        ("plan --nonsense", "No such option: --nonsense"),
        ("batch --every 1d --rollback tx", "go one at a time"),
        ("batch --every 0s", "--every must be more than nothing"),
        ("batch --metrics-port 9464", "--metrics-port and --metrics-host go with --every"),
        ("stream --metrics-host 0.0.0.0", "--metrics-host needs a port"),
        ("stream --metrics-port 65536", "'--metrics-port': Input should be less than or equal to 65535"),
        ("dead-letters show tx first", "'OFFSET': Input should be a valid integer"),
        ("dead-letters list --limit 0", "'--limit'"),
        ("get card card=a card=b", "card is given twice, and NAME=VALUE are of one entity: write --row once for each"),
        ("get card card=a card=a", "card is given twice"),
        ("learn --once --metrics-port 0", "go without --once and --status"),
        ("learn --status --metrics-host 0.0.0.0", "go without --once and --status"),
        ("learn --metrics-host 0.0.0.0", "--metrics-host needs a port"),
        ("model register m x:y --service s --fill a:b=1 --fill a__b=2", "--fill is given twice for a__b"),
        ("batch --rollback", "Option '--rollback' requires an argument; see `tidemill batch --help`"),
        ("dead-letters list --limit", "see `tidemill dead-letters list --help`"),
    ],
)
def test_a_command_called_wrongly_exits_with_2(project: Any, command: str, said: str) -> None:
    project.run("apply")
    said_instead = project.refused(command, code=2)
    assert said in said_instead
    assert "--help`" in said_instead


COMMANDS = [
    "plan",
    "apply",
    "stream --once",
    "batch",
    "dataset s --rows rows.csv --out train.parquet",
    "get s card=a amount=1",
    "backtest s --labels labels.parquet",
    "status",
    "archive-predictions",
    "dead-letters count",
    "dead-letters replay tx --to x.jsonl",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_no_project_is_told_apart(folder: Any, command: str) -> None:
    assert re.search(r"no project here: .* has no tidemill.toml, nor has a folder above it", folder.refused(command))
    assert "no project here: " in folder.refused(f"{command} --project {folder.root / 'elsewhere'}")


@pytest.mark.parametrize("command", ["stream --once", "batch", "get s card=a amount=1", "dead-letters list"])
def test_nothing_runs_before_apply(project: Any, command: str) -> None:
    assert "run `tidemill apply`" in project.refused(command)


def test_a_project_is_found_from_a_folder_below_it(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    project.run("apply")
    below = type(project)(project.root / "data", project._chdir)
    assert "nothing to apply" in below.run("plan").out


@pytest.mark.parametrize("command", ["stream --once", "get s card=a amount=1", "status", "batch"])
def test_a_database_of_another_version_is_refused(project: Any, command: str) -> None:
    project.run("apply")
    project.stream()
    db = sqlite3.connect(project.root / ".tidemill/online.db")
    db.execute("pragma user_version = 99")
    db.close()
    assert "it has schema version 99, and this tidemill reads version 1" in project.refused(command)


def test_a_registry_of_another_version_is_refused(project: Any) -> None:
    project.run("apply")
    registry = project.root / ".tidemill/offline/registry/000001.json"
    registry.write_text(registry.read_text().replace('"format": 2', '"format": 99'))
    for command in ("plan", "apply", "status", "get s card=a amount=1"):
        assert "the registry has format 99" in project.refused(command)


def test_an_offline_store_of_another_version_is_refused(project: Any) -> None:
    project.run("apply")
    (project.root / ".tidemill/offline/format.json").write_text('{"format": 99}')
    assert "the offline store says format 99" in project.refused("plan")


def test_a_log_that_is_not_what_it_says_is_named(project: Any) -> None:
    project.write("features.py", (project.root / "features.py").read_text().replace("data/*.jsonl", "data/*.parquet"))
    project.write("data/1.parquet", "these are no columns")
    project.run("apply")
    assert re.search(r"data/1\.parquet", project.refused("stream --once"))
    ran = project.run("status")
    assert (ran.code, ran.err) == (1, "tidemill: not everything could be asked: the log of tx cannot be read\n")
    assert re.search(r"the log of tx cannot be read: .*1\.parquet", " ".join(ran.out.split()))


def test_a_growing_log_that_was_replaced_between_two_runs_is_refused(project: Any, event: Callable[..., str]) -> None:
    project.run("apply")
    project.stream()
    project.write("data/1.jsonl", "".join(event(i, "c") for i in range(2000)))
    with pytest.raises(LogChangedError, match=r"data/1\.jsonl: begins differently than when it was read"):
        project.stream()


def test_a_log_without_a_folder_is_named(project: Any) -> None:
    project.write("features.py", (project.root / "features.py").read_text().replace("data/*.jsonl", "nowhere/*.jsonl"))
    project.run("apply")
    assert "nowhere: there is no such directory" in project.refused("stream --once")
    assert "there is no such directory" in " ".join(project.run("status").out.split())


def test_a_store_below_a_file_cannot_be_made(project: Any) -> None:
    project.write("blocked", "a file")
    project.write("tidemill.toml", '[offline]\nurl = "blocked/offline"\n')
    assert re.search(r"cannot \w+ .*blocked/offline.*a file stands where a folder is needed", project.refused("apply"))
    project.write("tidemill.toml", "")
    project.run("apply")
    project.write("tidemill.toml", '[online]\nurl = "sqlite:///blocked/online.db"\n')
    assert re.search(r"online store .*blocked/online\.db: cannot make its folder", project.refused("get s card=a amount=1"))


def test_a_store_without_permission_says_so(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def forbidding(path: Any, *rest: Any, **more: Any) -> int:  # who tests as root may do anything
        if ".tidemill/offline" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *rest, **more)

    monkeypatch.setattr("os.open", forbidding)
    assert re.search(r"cannot write .*\.tidemill/offline.*: this user may not", project.refused("apply"))


def test_init_below_a_file_says_so(folder: Any) -> None:
    folder.write("blocked", "a file")
    assert "cannot make a project in" in folder.refused("init blocked/shop")


def test_init_overwrites_nothing(folder: Any) -> None:
    folder.write("features.py", "mine")
    assert "features.py is there already, and init overwrites nothing" in folder.refused("init")
    assert not (folder.root / "tidemill.toml").exists()
    assert (folder.root / "features.py").read_text() == "mine"


def test_a_settings_file_that_is_wrong_is_named(project: Any) -> None:
    project.write("tidemill.toml", "[online]\nurll = 'x'\n")
    assert "unknown key online.urll; did you mean 'url'?" in project.refused("status")
    project.write("tidemill.toml", "[online\n")
    assert "is not valid TOML" in project.refused("status")


def test_shards_that_would_change_are_refused(project: Any) -> None:
    project.run("apply")
    project.write("tidemill.toml", "[online]\nshards = 8\n")
    assert "online.shards is 8, and this project was applied with 4" in project.refused("plan")


def test_an_error_nobody_expected_is_one_line_with_a_hint(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("tidemill.status.project_status", broken)
    assert project.refused("status").startswith("ZeroDivisionError: by zero (not an error that tidemill expected: set TIDEMILL_DEBUG=1")
    monkeypatch.setenv("TIDEMILL_DEBUG", "1")
    assert "Traceback" in project.run("status").err


def test_a_line_without_an_end_waits_and_does_not_count(project: Any, event: Callable[..., str]) -> None:
    project.run("apply")
    with (project.root / "data/1.jsonl").open("a") as log:
        log.write(event(1500).rstrip("\n")[:-5])
    project.stream()
    assert project.run("status --json").json["sources"][0]["partitions"][0]["log_end"] == 1500


def test_a_json_document_has_no_numbers_that_json_does_not_know(project: Any) -> None:
    project.run("apply")
    project.stream()

    def none(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    ran = project.run('get share --row \'{"card": "a", "amount": NaN}\' --row \'{"card": "a", "amount": -1e999}\' --json')
    assert ran.code == 0, ran.err
    found = json.loads(ran.out, parse_constant=none)
    assert [row["entity"]["amount"] for row in found["rows"]] == [None, None]


def test_a_line_of_json_ends_with_a_newline_and_with_nothing_else(project: Any) -> None:
    project.run("apply")
    project.stream()
    project.write("who.jsonl", '{"card": "a\u2028b\x85"}\n\n{"card": "a"}\r\n')
    found = project.run("get card --file who.jsonl --json").json
    assert [row["entity"]["card"] for row in found["rows"]] == ["a\u2028b\x85", "a"]
    project.write("who.jsonl", '{"card": "a"}\n["a"]\n')
    assert "who.jsonl is not jsonl: every line must be a JSON object" in project.refused("get card --file who.jsonl")
