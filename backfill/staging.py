"""Files to parts: every file is decoded as the source's log is, and what is an event is copied to the offline store, a part at a time.

A Parquet file that has the source's columns already is copied whole, and decoded only to see that it may be (`copies`).

A journal says for each stretch of each file which part holds it, and is created once; so whoever runs the same import again goes on
behind the last stretch, and of two who stage one file at once both end with the same parts. Nothing here counts anywhere yet.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import msgspec
import polars as pl

from tidemill.applied import AppliedBundle
from tidemill.definitions import Source
from tidemill.entities import MAX_KEY_BYTES
from tidemill.errors import StoreError, TidemillError
from tidemill.horizon import latest_of
from tidemill.kernel.bundle import Rejected
from tidemill.logs.base import RecordBatch
from tidemill.logs.cursor import Cursor
from tidemill.logs.decode import Decoder, raw_records
from tidemill.logs.files import format_of, open_file
from tidemill.offline.history import Part, import_folder, write_part
from tidemill.offline.store import OfflineStore
from tidemill.times import BEGINNING

from .copies import Copy, size_of, unchanged
from .inputs import InputFile

#: The columns of a file of dead letters of an import.
LETTERS = {"file": pl.String(), "offset": pl.Int64(), "reason": pl.String(), "view": pl.String(), "raw": pl.Binary()}
#: A share of bad records is looked at before the end once so many records were read.
_ENOUGH = 1_000_000


class TooManyBadError(TidemillError):
    """More records than allowed are no events. Nothing was committed."""


@dataclass(frozen=True, slots=True)
class Bad:
    """How many records may be no events: a number, or a share of all."""

    number: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Bad:
        """`"1%"` or `"100"`. Raises `ValueError`.

        >>> Bad.parse("1%"), Bad.parse("100")
        (Bad(number=None, share=0.01), Bad(number=100, share=None))
        """
        bad = cls(share=float(Fraction(text[:-1]) / 100)) if text.endswith("%") else cls(number=int(text))
        if (bad.number or 0) < 0 or not 0 <= (bad.share or 0) <= 1:
            raise ValueError("a number of records, or a share from 0% to 100%")
        return bad

    def exceeded(self, dead: int, records: int) -> bool:
        """Whether so many are too many."""
        # The share as it was written: 0.29 * 100 is less than 29.
        return dead > self.number if self.number is not None else dead > Fraction(str(self.share or 0)) * records


@dataclass(frozen=True, slots=True)
class Stretch:
    """Records [start, end) of a file: `events` in `part` (None: none), `dead`, and `outside` the dates asked for. `last`: the file ends.

    `letters`: dead letters, also those of views that cannot take an event (a null key). Times are UTC microseconds.
    """

    file: int
    start: int
    end: int
    last: bool
    part: Part | None
    records: int
    dead: int
    outside: int
    letters: int
    latest: int
    arrived: int


@dataclass(slots=True)
class _Tally:
    """What was found so far in a stretch. `kept`: its events; `rows`: its records, blank lines too."""

    kept: list[pl.DataFrame] = field(default_factory=list)
    letters: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    records: int = 0
    dead: int = 0
    outside: int = 0
    latest: int = BEGINNING
    arrived: int = BEGINNING


@dataclass
class Staging:
    """One import's parts, as they are made. `range`: event times [since, until), UTC microseconds, None: no bound. `at`: its instant.

    A part has at most `rows` records, and ends where its events are `bytes` or more. An event that lies more than the source's
    `max_ahead` after `at` is a dead letter: it is no history, and would hide the present.
    """

    store: OfflineStore
    source: Source
    decoder: Decoder
    bundles: Sequence[AppliedBundle]
    id: str
    at: int
    range: tuple[int | None, int | None]
    bad: Bad
    format: str | None = None
    rows: int = 262_144
    bytes: int = 64 << 20
    threads: int = 2
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = [0, 0]
        self._stop = threading.Event()

    @property
    def folder(self) -> str:
        """Where it all lies."""
        return import_folder(self.source.name, self.id)

    def run(self, files: Mapping[int, InputFile], total: int) -> dict[int, list[Stretch]]:
        """Stage files, which keep their numbers; the stretches of each. Raises `TooManyBadError`. `total`: about how many records."""
        done = self.journal(files)
        self._sums = [sum(s.dead for each in done.values() for s in each), sum(s.records for each in done.values() for s in each)]
        self._total = total
        self._report(0, 0)

        def stage(number: int) -> None:
            try:
                self._stage(number, files[number], done[number])
            except BaseException:
                self._stop.set()  # the others end at their next part
                raise

        with ThreadPoolExecutor(self.threads) as pool:
            for made in [pool.submit(stage, number) for number in files]:
                made.result()
        dead, records = self._sums
        if self.bad.exceeded(dead, records):
            raise self._too_many(dead, records)
        return done

    def journal(self, files: Iterable[int]) -> dict[int, list[Stretch]]:
        """The adjoining stretches of each of these files that are there already."""
        found: dict[int, list[Stretch]] = {number: [] for number in files}
        for key in self.store.list(f"{self.folder}/journal"):
            try:
                stretch = msgspec.json.decode(self.store.read(key) or b"", type=Stretch)
            except msgspec.DecodeError as error:
                raise StoreError(f"{self.store.path(key)} is damaged ({error}): delete {self.store.path(self.folder)}") from None
            mine = found.get(stretch.file)
            if mine is not None and stretch.start == (mine[-1].end if mine else 0):
                mine.append(stretch)
        return found

    def _stage(self, number: int, file: InputFile, done: list[Stretch]) -> None:
        if (done and done[-1].last) or self._stop.is_set():
            return
        with file.local() as path:
            if format_of(path, self.format)[0] == "parquet":
                self._copy(number, file, path, done)
            if done and done[-1].last:
                return
            cursor = self._open(path, done[-1].end if done else 0)
            try:
                while not (done and done[-1].last) and not self._stop.is_set():
                    start = done[-1].end if done else 0
                    stretch, mine = self._part(number, file, cursor, start)
                    done.append(stretch)
                    if not mine:  # another process was here first, perhaps with parts of another size
                        cursor.close()
                        cursor = self._open(path, stretch.end)
                    self._report(stretch.dead, stretch.records)
            finally:
                cursor.close()

    def _copy(self, number: int, file: InputFile, path: Path, done: list[Stretch]) -> None:
        """Take the file as it is, or as much of it as may be: the rest is for `_part`."""
        before = done[-1].part if done else None
        if done and (before is None or before.times is None):
            return  # some of it was decoded
        # Nobody else knows the name of a copy that is made here, so that whoever made it may delete it.
        key = f"{self.folder}/{number:05d}-{secrets.token_hex(4)}.parquet" if before is None else before.key
        copy = Copy.of(self.store, key, path, self.source, self.bytes)
        if copy is None:
            return
        while not (done and done[-1].last) and not self._stop.is_set():
            start = done[-1].end if done else 0
            tally = self._as_it_is(copy, start)
            if tally is None:
                break
            end = start + tally.rows
            part = copy.part(start, end) if tally.rows else None
            stretch, _ = self._note(number, file, start, end, tally, part, last=end == copy.ends[-1])
            done.append(stretch)
            self._report(stretch.dead, stretch.records)
        if before is None and not any(s.part is not None and s.part.key == key for s in done):
            self.store.delete(key)

    def _as_it_is(self, copy: Copy, start: int) -> _Tally | None:
        """A stretch of a copy from row `start` on; None where any of it is not to be taken as it is."""
        tally = _Tally()
        while tally.rows < self.rows and tally.bytes < self.bytes and start + tally.rows < copy.ends[-1]:
            before = tally.bytes
            try:
                for batch, read in copy.read(start + tally.rows):
                    frame = self._count(tally, batch)
                    tally.bytes += size_of(read)
                    if not unchanged(read, frame) or tally.bytes - before > self.bytes:
                        return None
            except StoreError:
                return None  # Polars alone cannot read it
        return tally

    def _open(self, path: Path, start: int) -> Cursor:
        return open_file(path, start=start, format=self.format, columns=list(self.source.schema), timestamp=self.source.timestamp)

    def _part(self, number: int, file: InputFile, cursor: Cursor, start: int) -> tuple[Stretch, bool]:
        """The next stretch, and whether it is this process's."""
        tally, end, last = _Tally(), start, False
        while tally.rows < self.rows and tally.bytes < self.bytes:
            batch = cursor.read(self.rows - tally.rows)
            if batch is None:
                last = True
                break
            frame = self._count(tally, batch)
            end = batch.end
            if len(frame):
                tally.kept.append(frame)
                tally.bytes += int(frame.estimated_size())
        part = None
        if tally.kept:
            part = write_part(self.store, f"{self.folder}/{number:05d}-{start:012d}-{end:012d}.parquet", pl.concat(tally.kept))
        return self._note(number, file, start, end, tally, part, last=last)

    def _count(self, tally: _Tally, batch: RecordBatch) -> pl.DataFrame:
        """The events of a batch that are history, within the dates asked for; counted, with letters for those that are none."""
        events = self.decoder.decode(batch)
        asked = self._inside(events.frame)
        frame, beyond = self._in_time(asked, batch)
        if len(events.dead):
            tally.letters.append(events.dead.with_columns(view=pl.lit(None, pl.String)))
        tally.letters += [*beyond, *self._views(frame, batch)]
        tally.rows += batch.end - batch.start
        tally.records += len(events.frame) + len(events.dead)
        tally.outside += len(events.frame) - len(asked)
        tally.dead += len(events.dead) + len(asked) - len(frame)
        tally.latest, tally.arrived = max(tally.latest, latest_of(frame["_time"])), max(tally.arrived, latest_of(frame["_arrival"]))
        return frame

    def _note(
        self, number: int, file: InputFile, start: int, end: int, tally: _Tally, part: Part | None, *, last: bool
    ) -> tuple[Stretch, bool]:
        """The stretch that the journal has from here on, and whether it is this one."""
        bad = pl.concat(tally.letters, how="diagonal_relaxed") if tally.letters else pl.DataFrame()
        if len(bad):
            # In the file's order: the order in which checks find them depends on how much is read at once.
            bad = bad.sort("offset", maintain_order=True).with_columns(file=pl.lit(file.name))
            shown = bad.select(pl.col(c).cast(t) for c, t in LETTERS.items())
            self.store.write_frame(f"{self.folder}/dead/{number:05d}-{start:012d}-{end:012d}.parquet", shown)
        counts = (tally.records, tally.dead, tally.outside, len(bad), tally.latest, tally.arrived)
        stretch = Stretch(number, start, end, last, part, *counts)
        key = f"{self.folder}/journal/{number:05d}-{start:012d}.json"
        if self.store.create(key, msgspec.json.encode(stretch)):
            return stretch, True
        return msgspec.json.decode(self.store.read(key) or b"", type=Stretch), False

    def _in_time(self, frame: pl.DataFrame, batch: RecordBatch) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
        """The events that are history, and letters for the others."""
        late = frame["_time"] > self.at + (self.source.max_ahead or 0)
        if not late.any():
            return frame, []
        reason = f"{self.source.timestamp}: after the moment of the import, so it is no history"
        return frame.filter(~late), [_letters(frame.filter(late), reason, None, batch)]

    def _inside(self, frame: pl.DataFrame) -> pl.DataFrame:
        since, until = self.range
        if since is not None:
            frame = frame.filter(pl.col("_time") >= since)
        return frame if until is None else frame.filter(pl.col("_time") < until)

    def _views(self, frame: pl.DataFrame, batch: RecordBatch) -> list[pl.DataFrame]:
        """Letters of events that a view cannot take, whatever the others do."""
        letters, seen = [], set()
        for applied in self.bundles:
            bundle = applied.bundle
            if applied.view in seen or not self._suspicious(frame, bundle.keys):
                continue
            seen.add(applied.view)
            for reason, rows in _by_reason(bundle.select(frame)[1]).items():
                letters.append(_letters(frame[rows], reason, applied.view, batch))
        return letters

    def _suspicious(self, frame: pl.DataFrame, keys: Sequence[str]) -> bool:
        """Whether any key may be null, or too long."""
        for key in keys:
            column = frame[key]
            longest = column.str.len_bytes().max() if column.dtype == pl.String else 0
            if column.null_count() or (isinstance(longest, int) and longest * len(keys) > MAX_KEY_BYTES // 2):
                return True
        return False

    def _report(self, dead: int, records: int) -> None:
        with self._lock:
            self._sums[0] += dead
            self._sums[1] += records
            bad, all_records = self._sums
            if self.progress is not None:
                self.progress(all_records, max(self._total, all_records))
        if (self.bad.number is not None or all_records >= _ENOUGH) and self.bad.exceeded(bad, all_records):
            raise self._too_many(bad, all_records)

    def _too_many(self, dead: int, records: int) -> TooManyBadError:
        allowed = f"{self.bad.number:,}" if self.bad.number is not None else f"{(self.bad.share or 0):.3%}"
        return TooManyBadError(
            f"{dead:,} of {records:,} records are no events, and {allowed} may be: nothing was imported; look at "
            f"{self.store.path(self.folder)}/dead, mend the files or the definition, or allow more with --max-bad"
        )


def letters_of(store: OfflineStore, source: str, id: str) -> pl.DataFrame:
    """The dead letters of an import: `file`, `offset` (the record's number in it), `reason`, `view`, `raw`."""
    keys = _letter_keys(store, import_folder(source, id))
    return store.read_frame(keys) if keys else pl.DataFrame(schema=LETTERS)


def _letter_keys(store: OfflineStore, folder: str) -> list[str]:
    """The files of letters that belong to stretches: a run that was killed, or came second, left others, of the same records."""
    keys = []
    for key in store.list(f"{folder}/dead"):
        number, start, end = key.rpartition("/")[2].removesuffix(".parquet").split("-")
        noted = store.read(f"{folder}/journal/{number}-{start}.json")
        if noted is not None and msgspec.json.decode(noted, type=Stretch).end == int(end):
            keys.append(key)
    return keys


def count_letters(store: OfflineStore, source: str, id: str) -> dict[str, int]:
    """How many dead letters an import has by reason, most frequent first."""
    keys = _letter_keys(store, import_folder(source, id))
    counts = store.read_frame(keys, ["reason"])["reason"].value_counts(sort=True).iter_rows() if keys else ()
    return dict(counts)


def _by_reason(rejected: Sequence[Rejected]) -> dict[str, list[int]]:
    out: dict[str, list[int]] = {}
    for each in rejected:
        out.setdefault(each.reason, []).append(each.row)
    return out


def _letters(frame: pl.DataFrame, reason: str, view: str | None, batch: RecordBatch) -> pl.DataFrame:
    offsets = frame["_offset"].to_numpy()
    raw = raw_records(batch, batch.offsets.searchsorted(offsets))
    columns = {"offset": offsets, "reason": [reason] * len(raw), "view": [view] * len(raw), "raw": raw}
    return pl.DataFrame(columns, schema={k: v for k, v in LETTERS.items() if k != "file"})
