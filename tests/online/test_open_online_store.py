from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.errors import DefinitionError
from tidemill.online import open_online_store
from tidemill.online.base import SlotId


@pytest.mark.parametrize("folder", ["", "deep/er/"])
def test_three_slashes_are_a_path_in_the_project(tmp_path: Path, folder: str) -> None:
    store = open_online_store(f"sqlite:///{folder}on line%20#?.db", base=tmp_path / "project")
    store.slots([SlotId("b", 0)])
    store.close()
    assert (tmp_path / "project" / folder / "on line%20#?.db").is_file()


def test_four_slashes_are_an_absolute_path(tmp_path: Path) -> None:
    store = open_online_store(f"sqlite:///{tmp_path}/here.db", base=tmp_path / "elsewhere")
    store.slots([SlotId("b", 0)])
    store.close()
    assert (tmp_path / "here.db").is_file()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("url", ["", "online.db", "sqlite:online.db", "sqlite://online.db", "sqlite://", "sqlite:///", "sqlite:///folder/"])
def test_a_url_that_names_no_file_says_what_is_expected(tmp_path: Path, url: str) -> None:
    with pytest.raises(DefinitionError, match=r"expected sqlite:///path, sqlite:////path or redis://host:port/db, got '"):
        open_online_store(url, base=tmp_path)


def test_an_unknown_scheme_is_named_without_the_urls_password(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="got a 'mysql' URL") as caught:
        open_online_store("mysql://me:secret@host/db", base=tmp_path)
    assert "secret" not in str(caught.value)
