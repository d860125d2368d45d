"""One partition of one source, from its log to the stores: the work of a stream worker, without any runtime around it.

    poll()   the next records, undecoded
    tile()   decoded and pre-aggregated: a `Flush` per bundle and shard
    apply()  one atomic compare-and-set step per slot; then archive and dead letters

The online store holds values and positions together, so there is no other state to recover: `restore` reads the positions of all
slots and goes back in the log to the lowest. On any mismatch everything in flight is dropped and restored (a delta is never
re-based on another position), so that two workers on one partition cost time, and never a count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from tidemill.applied import AppliedBundle
from tidemill.blocks import block_start
from tidemill.definitions import Source
from tidemill.errors import LogTruncatedError
from tidemill.horizon import horizon_of, latest_of
from tidemill.kernel.bundle import Bundle, Rejected
from tidemill.logs.base import Log, PartitionReader, RecordBatch
from tidemill.logs.decode import Decoder, Events, raw_records
from tidemill.offline.archive import ArchiveLog, ArchiveReader, ArchiveWriter, archived_end
from tidemill.offline.begin import begin
from tidemill.offline.cuts import latest_cut
from tidemill.offline.dead import LETTER_COLUMNS, DeadWriter
from tidemill.offline.partials import Partials
from tidemill.offline.store import OfflineStore
from tidemill.online.base import Advance, Heartbeat, OnlineStore, SlotId
from tidemill.publishing import Published, rebuild
from tidemill.times import BEGINNING

#: Records taken from the log for one flush, where there are as many. A store's work for a flush grows with the number of entities in it,
#: and so, with many entities, much more slowly than with the number of events: in SQLite nearly every page is written once per flush.
ROWS = 262_144


@dataclass(frozen=True, slots=True)
class Polled:
    """Consecutive offsets: records as they came from the log, or events as they came from the archive.

    `epoch` tells the readings apart. `drained`: the log had no more just now.
    """

    epoch: int
    batches: tuple[RecordBatch | Events, ...]
    drained: bool

    @property
    def start(self) -> int:
        """The first offset."""
        return self.batches[0].start

    @property
    def end(self) -> int:
        """The offset after the last."""
        return self.batches[-1].end


@dataclass(frozen=True, slots=True)
class Flush:
    """What one poll changes, everywhere."""

    epoch: int
    start: int
    end: int
    events: pl.DataFrame
    letters: pl.DataFrame
    advances: tuple[Advance, ...]


def nothing(polled: Polled) -> Flush:
    """A flush that is not to be applied."""
    return Flush(polled.epoch, polled.start, polled.end, pl.DataFrame(), pl.DataFrame(), ())


@dataclass(slots=True)
class Counters:
    """What a worker did on a partition since it began."""

    records: int = 0
    events: int = 0
    dead: int = 0
    flushes: int = 0
    mismatches: int = 0
    waiting: tuple[str, ...] = ()


@dataclass
class PartitionIngest:
    """See the module's text. `now` gives wall-clock UTC microseconds, for heartbeats only; `noted` hears of every append."""

    source: Source
    partition: int
    log: Log
    decoder: Decoder
    online: OnlineStore
    offline: OfflineStore
    bundles: Sequence[AppliedBundle]
    shards: int
    slack: int
    now: Callable[[], int]
    archive_seconds: float = 10.0
    archive_rows: int = 131_072
    rows: int = ROWS
    noted: Callable[[Sequence[Advance]], None] = lambda _: None
    counters: Counters = field(default_factory=Counters)

    epoch: int = field(default=0, init=False)
    _reader: PartitionReader | None = field(default=None, init=False)
    _history: ArchiveReader | None = field(default=None, init=False)
    _belief: dict[SlotId, int] = field(default_factory=dict, init=False)
    _live: list[AppliedBundle] = field(default_factory=list, init=False)
    _archived: int = field(default=0, init=False)
    _latest: int = field(default=BEGINNING, init=False)
    _arrived: int = field(default=BEGINNING, init=False)
    _read: int = field(default=0, init=False)
    _counted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._archive = ArchiveWriter(self.offline, self.source.name, self.partition, rows=self.archive_rows, seconds=self.archive_seconds)
        self._dead = DeadWriter(self.offline, self.source.name, self.partition, seconds=self.archive_seconds)

    @property
    def position(self) -> int:
        """The next offset to read."""
        return self._read

    @property
    def archived(self) -> int:
        """Everything before this offset is archived."""
        return self._archived

    @property
    def at_end(self) -> bool:
        """Whether there is nothing to read now: the log ends here, as of a moment ago, or no bundle can take events yet."""
        return not self._live or (self._history is None and self._reader is not None and self._reader.at_end)

    @property
    def latest(self) -> int:
        """The largest event time seen, UTC microseconds; BEGINNING before the first."""
        return self._latest

    @property
    def horizon(self) -> int:
        """The horizon of the next flush, UTC microseconds."""
        return horizon_of(self._latest, self._arrived, self.slack)

    # ---- where to begin ---------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Drop what is in flight; go back to the lowest position of any slot, and of the archive."""
        self.epoch += 1
        self._archive.clear()
        self._dead.clear()
        self._archived = archived_end(self.offline, self.source.name, self.partition)
        waiting: list[str] = []
        self._belief, self._live = {}, []
        for applied in self.bundles:
            if self._prepare(applied):
                self._live.append(applied)
            else:
                waiting.append(applied.bundle.id)
        self.counters.waiting = tuple(waiting)
        if self.source.start is not None and not self._archived and not any(self._belief.values()):
            self._begin(self.source.start)
        self._seek(min([*self._belief.values(), self._archived]))

    def _begin(self, start: str) -> None:
        """Nothing was streamed yet: have what lies before the source's start archived, as offsets without events."""
        find = getattr(self.log, "begin", None)  # a topic has it; files are read whole
        if find is not None:
            columns = {column: kind.polars for column, kind in self.source.schema.items()}
            begin(self.offline, self.source.name, self.partition, columns, lambda: dict(find(start)))
            self._archived = archived_end(self.offline, self.source.name, self.partition)

    def _prepare(self, applied: AppliedBundle) -> bool:
        """Learn the positions of a bundle's slots, rebuilding empty ones from the partials. False: not ready to take events yet."""
        bundle = applied.bundle
        slots = [SlotId(bundle.id, s) for s in range(self.shards)]
        states = self.online.slots(slots)
        empty = [slot for slot, state in zip(slots, states, strict=True) if not state.serving]
        if empty:
            partials = Partials(self.offline, bundle)
            version = partials.latest()
            if version.k:
                values = Published(bundle, partials, version)
                for slot in empty:
                    rebuild(self.online, bundle, partials, version, slot.shard, self.shards, values)
                states = self.online.slots(slots)
                if not all(state.serving for state in states):
                    return False  # another worker rebuilds it just now
            else:
                for slot, state in zip(slots, states, strict=True):
                    if state.cursor is not None:  # a rebuild from a version that was taken back since: nobody can go on with it
                        self.online.reset(slot)
                if applied.history and self._cuttable():
                    return False  # batch has to fold its history first
                states = self.online.slots(slots)
        for slot, state in zip(slots, states, strict=True):
            self._belief[slot] = state.positions.get(self.partition, 0)
            self._latest, self._arrived = max(self._latest, state.latest), max(self._arrived, state.arrived)
        return True

    def stands(self) -> bool:
        """Whether every slot stands where this reading left it. False: one does not, and the reading has begun anew where they stand.

        For when nothing is in flight. A flush would notice too, but where no event comes there is none, and a store that came back
        without its end, or empty, would never get it again.
        """
        slots = list(self._belief)
        states = self.online.slots(slots)
        stand = [state.positions.get(self.partition, 0) if state.cursor is None else None for state in states]
        if stand == list(self._belief.values()):
            return True
        self.counters.mismatches += 1
        self.archive()  # it was applied, and need not be read a second time for that
        self.restore()
        return False

    def admit(self) -> bool:
        """Look again at the bundles that could not take events yet. True: one can now, and the reading has begun anew with it.

        Reading anew while none can would drop what waits for the archive each time, and so never get anywhere.
        """
        if not any(self._prepare(b) for b in self.bundles if b.bundle.id in self.counters.waiting):
            return False
        self.archive()
        self.restore()
        return True

    def redefine(self, source: Source, decoder: Decoder, bundles: Sequence[AppliedBundle], shards: int) -> None:
        """Go on with newer definitions over the same log. Old and new state never mix: each bundle has its own slots and positions."""
        self.archive()  # what waits has the old schema's columns
        self.source, self.decoder, self.bundles, self.shards = source, decoder, bundles, shards
        self.restore()

    def _cuttable(self) -> bool:
        """Whether batch can make versions of this source: where the whole log is less than a block it cannot, nor need it."""
        return bool(latest_cut(self.offline, self.source.name) or block_start(self._archived))

    def _seek(self, offset: int) -> None:
        """Read on from an offset. What is archived is read from the archive, for ever as it was decoded then.

        Else a schema that has changed since would decode the log differently from what batch folds, and a value would move with a fold.
        """
        self._read = offset
        self._history = None
        first = self.log.start(self.partition)
        if max(offset, self._archived) < first:
            raise LogTruncatedError(
                f"{self.source.name}, partition {self.partition}: offset {offset} is needed, the log begins at {first}, and the "
                f"archive ends at {self._archived}: events between are lost; restore the archive, or start a new source"
                + ("" if self._archived or self.source.start else ", such as with start='earliest' to do without them")
            )
        if offset < self._archived:
            columns = {column: kind.polars for column, kind in self.source.schema.items()}
            self._history = ArchiveLog(self.offline, self.source.name, columns).open(self.partition, offset)
        elif self._reader is None:
            self._reader = self.log.open(self.partition, offset)
        else:
            self._reader.seek(offset)

    # ---- the three steps --------------------------------------------------------------------------------------------------------

    def poll(self) -> Polled | None:
        """The next records; None when there is nothing new for now. Never blocks."""
        batches: list[RecordBatch | Events] = []
        rows, drained = self.rows, not self._live
        while rows > 0 and not drained:
            try:
                batch = self._next(rows)
            except LogTruncatedError:  # the log has dropped what this reader still needs: the archive has it, or `restore` says it is lost
                self.restore()
                return None
            if batch is None:
                drained = True
            else:
                batches.append(batch)
                rows -= batch.end - batch.start
                self._read = batch.end
        return Polled(self.epoch, tuple(batches), drained) if batches else None

    def _next(self, rows: int) -> RecordBatch | Events | None:
        """From the archive, while the log no longer has them; then from the log."""
        if self._history is not None:
            batch = self._history.read(rows)
            if batch is not None:
                none = pl.DataFrame(schema={"offset": pl.Int64, "reason": pl.String, "raw": pl.Binary})
                return Events(batch.frame, none, self.partition, batch.start, batch.end)
            self._history = None
            self._reader = self._reader or self.log.open(self.partition, self._read)
            self._reader.seek(self._read)
        assert self._reader is not None
        return self._reader.read(rows)

    def tile(self, polled: Polled) -> Flush:
        """Decode, and pre-aggregate for every slot that does not have these records yet.

        Raises `LogUnavailableError`, and has changed nothing, while the schemas of Avro records cannot be had; `restore` goes back to them.
        """
        if polled.epoch != self.epoch:  # `apply` would drop it; but believing that slots get it would have the next flush refused
            return nothing(polled)
        decoded = [self.decoder.decode(b) if isinstance(b, RecordBatch) else b for b in polled.batches]
        frame = decoded[0].frame if len(decoded) == 1 else pl.concat([events.frame for events in decoded], rechunk=True)
        if len(frame):
            self._latest = max(self._latest, latest_of(frame["_time"]))
            self._arrived = max(self._arrived, latest_of(frame["_arrival"]))
        horizon = horizon_of(self._latest, self._arrived, self.slack)
        arrivals = self.source.arrival or frame["_arrival"].is_not_null().any()
        through = latest_of(frame["_arrival" if arrivals else "_time"])
        letters = [events.dead.with_columns(view=pl.lit(None, dtype=pl.String)) for events in decoded]
        advances: list[Advance] = []
        for applied in self._live:
            bundle = applied.bundle
            selected, rejected = bundle.select(frame)
            letters += _letters(applied.view, rejected, frame, polled.batches)
            advances += self._advances(bundle, selected, polled.start, polled.end, horizon, through)
        return Flush(polled.epoch, polled.start, polled.end, frame, _sorted(letters), tuple(advances))

    def _advances(self, bundle: Bundle, events: pl.DataFrame, start: int, end: int, horizon: int, through: int) -> list[Advance]:
        """One advance for every slot of the bundle that stands before `end`, with what its shard gets of the events from there on."""
        standing: dict[int, list[SlotId]] = {}
        for shard in range(self.shards):
            slot = SlotId(bundle.id, shard)
            if self._belief[slot] < end:
                standing.setdefault(self._belief[slot], []).append(slot)
        out = []
        latest, arrived = self._latest, self._arrived
        for position, slots in standing.items():
            rows = events if position <= start else events.filter(pl.col("_offset") >= position)
            deltas = bundle.deltas(rows, horizon, self.partition, self.shards) if len(rows) else {}
            for slot in slots:
                appends = deltas.get(slot.shard, ())
                out.append(Advance(slot, self.partition, position, end, through, horizon, latest, arrived, appends))
                self._belief[slot] = end
        return out

    def apply(self, flush: Flush) -> bool:
        """Apply a flush, then archive it. False: it was in flight when the reading was restored, or a slot stood elsewhere.

        Raises `LogChangedError`, and has counted nothing, where the records may be of another log by the same name.
        """
        if flush.epoch != self.epoch:
            return False
        if self._history is None and self._reader is not None:
            self._reader.confirm()
        if not all(self.online.apply(flush.advances)):
            self.counters.mismatches += 1
            self.restore()
            return False
        self.noted(flush.advances)
        if flush.end > self._pending_end():
            begin = self._pending_end()
            letters, events = flush.letters, flush.events
            if begin > flush.start:  # the rest is archived already, and was counted then
                letters, events = letters.filter(pl.col("offset") >= begin), events.filter(pl.col("_offset") >= begin)
            self._dead.add(begin, flush.end, letters)
            self._archive.add(begin, flush.end, events)
            self._count(flush)
        self.counters.flushes += 1
        if self._archive.due():
            self.archive()
        return True

    def _count(self, flush: Flush) -> None:
        """Count what was not counted before: a reading that began anew sees again what waited for the archive."""
        begin = max(flush.start, self._counted)
        if flush.end > begin:
            again = begin > flush.start
            self.counters.records += flush.end - begin
            self.counters.events += int((flush.events["_offset"] >= begin).sum()) if again else len(flush.events)
            self.counters.dead += int((flush.letters["offset"] >= begin).sum()) if again else len(flush.letters)
            self._counted = flush.end

    def _pending_end(self) -> int:
        """What is archived, or waits to be."""
        pending = self._archive.pending
        return self._archived if pending is None else pending[1]

    def archive(self) -> None:
        """Write what waits to be archived; dead letters first, because a restart goes back to the archive's end and no further."""
        self._dead.flush()
        written = self._archive.flush()
        if written is not None:
            self._archived = written[1]

    def idle(self) -> None:
        """Nothing new for now: archive what is due, and say that this partition is read to its end."""
        if self._archive.due():
            self.archive()
        if self._live and self.at_end:
            age = getattr(self._reader, "end_age", 0.0)  # a topic's end was asked for a moment ago, and more may have come since
            self.online.heartbeat(self.source.name, {self.partition: Heartbeat(self._read, self.now() - int(age * 1e6))})

    def run(self, batches: int | None = None) -> int:
        """Poll, tile and apply until there is nothing new, or `batches` times; how many times it was. For tests and one-off jobs."""
        done = 0
        while batches is None or done < batches:
            polled = self.poll()
            if polled is None:
                self.idle()
                break
            self.apply(self.tile(polled))
            done += 1
        return done

    def close(self) -> None:
        """Close the log. Writes nothing: a runtime closes after a failure too."""
        if self._reader is not None:
            self._reader.close()


def _letters(view: str, rejected: Sequence[Rejected], frame: pl.DataFrame, batches: Sequence[RecordBatch | Events]) -> list[pl.DataFrame]:
    """Dead letters of events that only this view cannot take. Those that come from the archive were written when they came from the log."""
    if not rejected:
        return []
    all_offsets = frame["_offset"].to_numpy()[[r.row for r in rejected]]
    reasons = np.array([r.reason for r in rejected], dtype=object)
    letters = []
    for records in batches:
        mine = (all_offsets >= records.start) & (all_offsets < records.end)
        if isinstance(records, RecordBatch) and mine.any():
            offsets = all_offsets[mine]
            raw = raw_records(records, np.searchsorted(records.offsets, offsets))
            columns = {"offset": offsets, "reason": reasons[mine].tolist(), "raw": raw, "view": [view] * len(raw)}
            letters.append(pl.DataFrame(columns, schema_overrides={"raw": pl.Binary, "offset": pl.Int64}))
    return letters


def _sorted(letters: list[pl.DataFrame]) -> pl.DataFrame:
    """In offset order, with the dead letters' columns. A letter has no arrival time but where the log itself records it."""
    frame = pl.concat(letters, how="diagonal_relaxed").with_columns(arrival=pl.lit(None, dtype=pl.Int64))
    return frame.unique(["offset", "view"], maintain_order=True).sort("offset").select(pl.col(c).cast(t) for c, t in LETTER_COLUMNS.items())
