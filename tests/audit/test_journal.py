"""Journals: what is noted, what is dropped, and what is there after the worst."""

from __future__ import annotations

import datetime as dt
import enum
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies as some
from tidemill.errors import StoreError, StoreUnavailableError
from tidemill.journals import Counts, Journal, entries, exact, journal_files, lost, plain
from tidemill.offline.directory import DirectoryStore
from tidemill.types import ColumnType

T0 = 1_770_000_000_000_000


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "offline")


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def said(store: DirectoryStore, **span: Any) -> list[Any]:
    return [e["n"] for e in entries(store, "j", **span)]


@given(  # every type of column, and lists
    st.recursive(st.one_of(*(some.values(ColumnType(k)) for k in ("float", "int", "str", "bool", "timestamp"))), st.lists, max_leaves=5)
)
def test_a_value_is_read_back_to_the_bit(value: Any) -> None:
    again = exact(json.loads(json.dumps(plain(value), allow_nan=False)))
    assert repr(again) == repr(value)  # a float's repr is its bits, but for NaN's


@pytest.mark.parametrize(
    ("value", "again"),
    [
        (np.int64(2**62 + 1), 2**62 + 1),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([1, 2]), [1, 2]),
        (2**70, 2**70),
        (
            dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=1))) + dt.timedelta(hours=1),
            dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        ),
        (np.datetime64("2026-01-01"), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        (b"\x00\xff", b"\x00\xff"),
        ("\ud800", "\ud800"),
        ({1}, {"$repr": "{1}"}),
        (np.datetime64("NaT"), None),
        (Colour.RED, "red"),
        (Size.LARGE, 3),
        (Decimal("1.5"), 1.5),
        (Fraction(1, 4), 0.25),
        (2j, {"$repr": "2j"}),
    ],
)
def test_what_people_hand_over_is_noted_too(value: Any, again: Any) -> None:
    found = exact(plain(value))
    assert found == again
    assert type(found) is type(again)


def test_entries_come_back_in_order_with_their_times(store: DirectoryStore) -> None:
    journal = Journal(store, "j", clock=Clock())
    for n in range(5):
        assert journal.put({"n": n})
    assert journal.close() == Counts(written=5, files=1)
    assert [(e["logged"], e["n"]) for e in entries(store, "j")] == [(T0 + 1 + n, n) for n in range(5)]
    (file,) = journal_files(store, "j")
    assert (file.first, file.last, file.key.split("/")[2]) == (T0 + 1, T0 + 5, "2026-02-02")
    assert said(store, since=T0 + 2, until=T0 + 4) == [1, 2]
    assert said(store, since=T0 + 6) == []
    assert said(store, until=T0 + 1) == []


def test_a_file_is_full_at_so_many_bytes(store: DirectoryStore) -> None:
    journal = Journal(store, "j", bytes=1000, clock=Clock())
    for n in range(100):
        journal.put({"n": n, "text": "x" * 90})
    counts = journal.close()
    assert counts.written == 100
    assert counts.files >= 10
    assert said(store) == list(range(100))


def test_a_file_is_written_when_its_first_entry_is_old_enough(store: DirectoryStore) -> None:
    journal = Journal(store, "j", seconds=0.05)
    journal.put({"n": 1})
    deadline = time.monotonic() + 10
    while not journal_files(store, "j"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert said(store) == [1]
    journal.close()


class Hanging(DirectoryStore):
    """A store that takes nothing until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()
        self.came = threading.Event()

    def create(self, key: str, data: bytes) -> bool:
        self.came.set()
        assert self.go.wait(30)
        return super().create(key, data)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Hanging]:
    store = Hanging(tmp_path / "offline")
    yield store
    store.go.set()


def test_a_store_that_hangs_slows_nobody_and_what_the_queue_cannot_hold_is_counted(hanging: Hanging) -> None:
    journal = Journal(hanging, "j", most=50, seconds=0.0, clock=Clock())
    journal.put({"n": -1})
    assert hanging.came.wait(10)  # the thread is stuck in the store from now on
    begun = time.monotonic()
    taken = [journal.put({"n": n}) for n in range(1000)]
    assert time.monotonic() - begun < 1.0
    assert taken == [True] * 50 + [False] * 950
    assert journal.counts == Counts(waiting=51, dropped=950)
    hanging.go.set()
    assert journal.flush()
    journal.put({"n": 1000})
    assert journal.close() == Counts(written=52, dropped=950, files=journal.counts.files)
    assert said(hanging) == [-1, *range(50), 1000]
    assert lost(hanging, "j").entries == 950


def test_a_heavy_entry_takes_the_room_of_many(hanging: Hanging) -> None:
    journal = Journal(hanging, "j", most=50, seconds=0.0)
    journal.put({"n": 0})
    assert hanging.came.wait(10)
    assert [journal.put({"n": n}, weight=20) for n in (1, 2, 3)] == [True, True, False]
    hanging.go.set()
    journal.close()
    assert said(hanging) == [0, 1, 2]


def test_a_store_that_is_away_gets_everything_when_it_is_back(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def away(key: str, data: bytes) -> bool:
        tried.append(key)
        raise StoreUnavailableError("away")

    monkeypatch.setattr("tidemill.journals.writer._AGAIN", 0.01)
    journal = Journal(store, "j", seconds=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(store, "create", away)
        journal.put({"n": 1})
        deadline = time.monotonic() + 10
        while len(tried) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert journal.flush()
    assert said(store) == [1]
    journal.close()


@pytest.mark.parametrize("error", [StoreUnavailableError("the answer was lost"), ValueError("not of ours")])
def test_a_file_whose_answer_was_lost_is_not_written_again_with_more_in_it(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Else its entries would be there twice, and whoever goes by the numbers of files would never see what was added."""
    real, tried = DirectoryStore.create, threading.Event()
    more = threading.Event()

    def create(self: DirectoryStore, key: str, data: bytes) -> bool:
        done = real(self, key, data)
        if not tried.is_set():
            tried.set()
            more.wait(10)
            raise error
        return done

    monkeypatch.setattr(DirectoryStore, "create", create)
    monkeypatch.setattr("tidemill.journals.writer._AGAIN", 0.01)
    journal = Journal(store, "j", seconds=0.0, clock=Clock())
    journal.put({"n": 0})
    assert tried.wait(10)
    for n in (1, 2):
        journal.put({"n": n})
    more.set()
    assert journal.flush()
    assert said(store) == [0, 1, 2]
    numbers = [file.number for file in journal_files(store, "j")]
    assert numbers == sorted(set(numbers))
    assert journal.close() == Counts(3, 0, 0, 0, len(numbers))


def test_what_a_store_never_takes_counts_as_dropped_at_the_end(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(key: str, data: bytes) -> bool:
        raise StoreError("full")

    monkeypatch.setattr(store, "create", away)
    journal = Journal(store, "j")
    for n in range(3):
        journal.put({"n": n})
    assert journal.close() == Counts(dropped=3)
    assert not journal.put({"n": 4})


def test_an_entry_that_cannot_be_made_is_counted_and_ends_nothing(store: DirectoryStore) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError

    journal = Journal(store, "j")
    journal.put(broken)
    journal.put(lambda: {"n": 1})
    assert journal.close() == Counts(written=1, failed=1, files=1)
    assert said(store) == [1]
    assert lost(store, "j").entries == 1


WRITER = """
import sys, time
from pathlib import Path
from tidemill.journals import Journal
from tidemill.offline.directory import DirectoryStore
journal = Journal(DirectoryStore(Path(sys.argv[1])), "j", seconds=0.02)
n = 0
while True:
    journal.put({"n": n, "text": "x" * 1000})
    n += 1
    time.sleep(0.0002)
"""


def test_what_a_killed_process_has_written_is_readable(store: DirectoryStore, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "offline")]) as process:
        deadline = time.monotonic() + 30
        while len(journal_files(store, "j")) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    found = said(store)
    assert found == list(range(len(found)))
    assert len(found) >= 5


def test_a_process_that_ends_writes_what_waits(store: DirectoryStore, tmp_path: Path) -> None:
    once = WRITER.replace("while True:", "for _ in range(3):")
    subprocess.run([sys.executable, "-c", once.replace("seconds=0.02", "seconds=60"), str(tmp_path / "offline")], check=True)
    assert said(store) == [0, 1, 2]


def test_a_fork_has_a_journal_of_its_own(store: DirectoryStore) -> None:
    code = WRITER[: WRITER.index("n = 0")].replace("seconds=0.02", "seconds=60") + (
        "import os\njournal.put({'n': 1})\nif os.fork() == 0:\n    journal.put({'n': 2})\n    journal.close()\n    os._exit(0)\n"
        "os.wait()\njournal.put({'n': 3})\njournal.close()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, store.path("x").removesuffix("/x")], check=True)
    assert sorted(said(store)) == [1, 2, 3]
    assert len({f.writer for f in journal_files(store, "j")}) == 2


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:-30], [0, 1]),
        (lambda data: data.replace(b'"n":1', b'"n":'), [0]),
        (lambda data: b"", []),
        (lambda data: data[data.index(b"\n") + 1 :], []),
    ],
)
def test_a_damaged_file_is_named_and_read_as_far_as_it_goes(store: DirectoryStore, damage: Any, left: list[int]) -> None:
    journal = Journal(store, "j", clock=Clock())
    for n in range(3):
        journal.put({"n": n})
    journal.close()
    (file,) = journal_files(store, "j")
    data = store.read(file.key)
    store.write(file.key, damage(data))
    with pytest.raises(StoreError, match=Path(file.key).name):
        said(store)
    told: list[str] = []
    assert [e["n"] for e in entries(store, "j", damaged=lambda _, why: told.append(why))] == left
    assert len(told) == 1
