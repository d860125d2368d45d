"""Files to parts: every file is decoded as the source's log is, and what is an event is copied to the offline store, a part at a time.

A journal says for each stretch of each file which part holds it, and is created once; so whoever runs the same import again goes on
behind the last stretch, and of two who stage one file at once both end with the same parts. Nothing here counts anywhere yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import msgspec
import polars as pl

from tidemill.applied import AppliedBundle
from tidemill.definitions import Source
from tidemill.entities import MAX_KEY_BYTES
from tidemill.errors import StoreError, TidemillError
from tidemill.kernel.bundle import Rejected
from tidemill.logs.base import RecordBatch
from tidemill.logs.cursor import Cursor
from tidemill.logs.decode import Decoder, raw_records
from tidemill.logs.files import open_file
from tidemill.offline.history import Part, import_folder, write_part
from tidemill.offline.store import OfflineStore
from tidemill.times import BEGINNING

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

    def _open(self, path: Path, start: int) -> Cursor:
        return open_file(path, start=start, format=self.format, columns=list(self.source.schema), timestamp=self.source.timestamp)

    def _part(self, number: int, file: InputFile, cursor: Cursor, start: int) -> tuple[Stretch, bool]:
        """The next stretch, and whether it is this process's."""
        frames: list[pl.DataFrame] = []
        letters: list[pl.DataFrame] = []
        end, records, dead, outside, rows, size, last = start, 0, 0, 0, 0, 0, False
        while rows < self.rows and size < self.bytes:
            batch = cursor.read(self.rows - rows)
            if batch is None:
                last = True
                break
            events = self.decoder.decode(batch)
            asked = self._inside(events.frame)
            frame, beyond = self._in_time(asked, batch)
            if len(frame):
                frames.append(frame)
            if len(events.dead):
                letters.append(events.dead.with_columns(view=pl.lit(None, pl.String)))
            letters += [*beyond, *self._views(frame, batch)]
            end, rows, size = batch.end, rows + batch.end - batch.start, size + int(frame.estimated_size())
            records += len(events.frame) + len(events.dead)
            outside += len(events.frame) - len(asked)
            dead += len(events.dead) + len(asked) - len(frame)
        name = f"{number:05d}-{start:012d}-{end:012d}"
        kept = pl.concat(frames) if frames else pl.DataFrame()
        part = None
        if len(kept):
            part = write_part(self.store, f"{self.folder}/{name}.parquet", kept)
        bad = pl.concat(letters, how="diagonal_relaxed") if letters else pl.DataFrame()
        if len(bad):
            shown = bad.with_columns(file=pl.lit(file.name)).select(pl.col(c).cast(t) for c, t in LETTERS.items())
            self.store.write_frame(f"{self.folder}/dead/{name}.parquet", shown)
        newest = [_largest(kept, column) for column in ("_time", "_arrival")]
        stretch = Stretch(number, start, end, last, part, records, dead, outside, len(bad), *newest)
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


def _largest(frame: pl.DataFrame, column: str) -> int:
    value = frame[column].max() if len(frame) else None
    return value if isinstance(value, int) else BEGINNING
