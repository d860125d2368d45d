"""A source whose definition changes while events of it are archived: the archive says what an offset holds, for ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tidemill as tm
from tests.project import EVENTS, VIEW, Folder, events
from tidemill.applied import _still_decoded, decoding
from tidemill.errors import DefinitionError

SUM = VIEW.replace('[tm.count(windows=["lifetime"])]', '[tm.count(windows=["lifetime"]), tm.sum("y", windows=["lifetime"])]')
WITH_Y = EVENTS.replace('"x": int', '"x": int, "y": int')


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (EVENTS.replace("tm.Timestamp}", 'tm.Timestamp, "paid": tm.Timestamp}').replace('timestamp="at"', 'timestamp="paid"'), "timestamp"),
        (EVENTS.replace("tm.Timestamp", 'tm.Timestamp("s")'), "type of at"),
        (EVENTS.replace("path=", 'arrival="at", path='), "arrival"),
        (EVENTS.replace("path=", 'arrival="at", max_ahead="1h", path='), "arrival"),
    ],
)
def test_when_an_event_happened_cannot_be_said_anew_once_events_are_archived(tmp_path: Path, changed: str, what: str) -> None:
    folder = Folder(tmp_path / "p")
    folder.define(changed + VIEW)  # nothing is archived yet
    folder.define(EVENTS + VIEW)
    folder.log(events(3))
    folder.stream()
    with pytest.raises(DefinitionError, match=f"{what} was .* declare a source of another name"):
        folder.define(changed + VIEW)


def test_a_new_column_counts_from_where_the_archive_ends_before_and_after_a_fold(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p")
    folder.log(events(1500, y=1))
    folder.stream()
    folder.define(WITH_Y + SUM)
    folder.batch()
    folder.stream()
    assert folder.get() == {"v__count_lifetime": 1500, "v__y_sum_lifetime": 0}
    folder.log(events(1000, 1500, y=1))
    for act in (folder.stream, folder.batch, folder.stream, folder.batch):
        act()
        assert folder.get() == {"v__count_lifetime": 2500, "v__y_sum_lifetime": 1000}


def test_what_was_a_dead_letter_stays_one_when_the_store_is_lost_and_counts_once_when_replayed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "p", WITH_Y + VIEW)
    folder.log([*events(40, y=1), *events(10, 40, y="bad")])
    folder.stream()
    assert folder.get() == {"v__count_lifetime": 40}
    folder.define(EVENTS + VIEW)  # without the column, the ten would be events
    for lost in (False, True):
        if lost:
            folder.env.online.close()
            shutil.rmtree(folder.path / ".tidemill" / "online.db", ignore_errors=True)
            for file in (folder.path / ".tidemill").glob("online.db*"):
                file.unlink()
            folder.define(EVENTS + VIEW)
        folder.stream()
        assert folder.get() == {"v__count_lifetime": 40}


def test_a_registry_from_before_there_was_avro_was_of_json() -> None:
    source = tm.Source("events", schema={"at": tm.Timestamp}, timestamp="at", topic="events")
    before = {key: value for key, value in decoding(source).items() if key != "value_format"}
    avro = tm.Source("events", schema={"at": tm.Timestamp}, timestamp="at", topic="events", value_format="avro")
    assert _still_decoded(source, before) == decoding(source)
    with pytest.raises(DefinitionError, match="value_format was 'json' and is now 'avro'"):
        _still_decoded(avro, before)
