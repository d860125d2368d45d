"""Dead letters, once more: decoded with today's schema, and what is good now is written where the log delivers it again.

A letter is an event that was never counted, so delivering it again counts it once. Two things keep it at once: letters that only one
view refused are left alone (the other views have counted the event, and it is archived), and what was replayed is noted in the offline
store, `replays/<source>/<number>.json`, before the file appears; it is passed over the next time.
"""

from __future__ import annotations

import csv
import fnmatch
import glob
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import LogError, LogUnavailableError, StoreError, TidemillError
from tidemill.logs.base import RecordBatch
from tidemill.logs.files import FORMATS, FileLog
from tidemill.logs.records import MAX_RECORD, too_long
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.dead import LETTER_COLUMNS, list_dead
from tidemill.offline.store import OfflineStore, read_json

_PAGE = 10_000
_NAME = re.compile(r"(\d{8,})\.json")
#: (what is under way, done, of how many)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay came to. `written`: events in the file now. `failing`: letters that still are none, by today's reason.

    `refused`: letters that only a view refused, `before`: those replayed earlier; both are left alone. `delivered`: whether the file is one
    of the source's log, so that workers read it.
    """

    source: str
    written: int
    failing: Mapping[str, int]
    refused: int
    before: int
    delivered: bool


def replayed(store: OfflineStore, source: str) -> set[tuple[int, int]]:
    """The (partition, offset) of every letter that was replayed."""
    done: set[tuple[int, int]] = set()
    for key in store.list(f"replays/{source}"):
        if _NAME.fullmatch(key.rpartition("/")[2]):
            offsets = read_json(store, key, store.read(key) or b"").get("offsets")
            if not isinstance(offsets, dict):
                raise StoreError(f"{store.path(key)} should list the offsets that were replayed: restore it from a copy")
            done |= {(int(p), o) for p, listed in offsets.items() for o in listed}
    return done


def replay(
    env: Environment,
    source: Source,
    to: Path | None = None,
    *,
    reason: str | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Replay:
    """Write the dead letters of `source` that are events by today's schema to the file `to`: a new one, or JSON lines to append to.

    Without `to`, into the source's topic, in one transaction: the raw values, each to the partition that it came from, with the time of
    the replay, because that is when they become known.

    A file `to` ends in the source's own format: .jsonl gets the raw lines as they came, .csv the raw records under the columns of the log's
    last file, .parquet the decoded columns. Letters of an Avro or Protobuf topic go into .parquet. `reason`: only letters whose reason
    contains this. `again`: also what was replayed before.

    Raises `LogError` where `to` cannot take them, `TidemillError`.
    """
    if to is None:
        topic = _topic(env, source)
        kind, delivered = "topic", True
    else:
        to = Path(os.path.abspath(to))  # noqa: PTH100 - takes `..` out, and follows no link
        kind, delivered = _kind(env, source, to), _place(env, source, to)
    letters = _letters(env.offline, source.name, reason)
    refused = letters.filter(pl.col("view").is_not_null()).height
    letters = letters.filter(pl.col("view").is_null())
    done = set() if again else replayed(env.offline, source.name)
    fresh = pl.Series([(p, o) not in done for p, o in letters.select("partition", "offset").iter_rows()], dtype=pl.Boolean)
    before = int((~fresh).sum())
    letters = letters.filter(fresh)
    header = _header(env, source) if kind == "csv" else []
    good: list[pl.DataFrame] = []
    decoded: list[pl.DataFrame] = []
    failing: dict[str, int] = {}
    for start in range(0, letters.height, _PAGE):
        page = letters.slice(start, _PAGE)
        events, dead = _decode(env, source, page, kind, header)
        good.append(page[events["_offset"]])
        decoded.append(events)
        for why in dead["reason"]:
            failing[why] = failing.get(why, 0) + 1
        if progress is not None:
            progress("decode", start + page.height, letters.height)
    kept = pl.concat(good) if good else letters
    if kept.height and to is None:
        _produce(env.offline, source, topic, kept)
    elif kept.height and to is not None:
        _write(env.offline, source, to, kind, kept, decoded, header)
    ordered = dict(sorted(failing.items(), key=lambda item: (-item[1], item[0])))
    return Replay(source.name, kept.height, ordered, refused, before, delivered)


def _kind(env: Environment, source: Source, to: Path) -> str:
    """The format of the file: that of the source, which its name must tell too."""
    named = FORMATS.get(to.suffix)
    format = env.registered(source)
    if format is not None:
        if named != "parquet" or to.exists():
            raise LogError(f"{to}: the letters of {source.name!r} are {format.title}, and are written as columns: name a new .parquet file")
        return named
    listed = FORMATS.get(Path(source.path or "").suffix)
    wanted = source.format or listed or named or "jsonl"
    if named != wanted:
        suffix = next(s for s, f in FORMATS.items() if f == wanted)
        raise LogError(f"{to}: source {source.name!r} is {wanted}, so the file that is to join its log must end in {suffix}")
    if to.exists() and wanted != "jsonl":
        raise LogError(f"{to} is there already, and only JSON lines can be appended to: name a new file")
    return wanted


def _place(env: Environment, source: Source, to: Path) -> bool:
    """Whether `to` is a file of the source's log. Raises `LogError` where writing it would move the offsets of others."""
    if source.path is None:
        return False
    log = env.log(source)
    if not isinstance(log, FileLog):
        return False
    partition = _partition_of(env, source, to)
    if partition is None:
        return False
    later = [file for file in _files_of(env, source, partition) if file.parts > to.parts]
    if later:
        raise LogError(
            f"{to}: {later[-1].name} comes after it in partition {partition} of {source.name!r}, and what was read must not move: "
            f"choose a name that sorts after {later[-1].name}"
        )
    return True


def _pattern(env: Environment, source: Source) -> Path:
    return Path(os.path.abspath(env.project.resolve(source.path or "")))  # noqa: PTH100 - takes `..` out, and follows no link


def _partition_of(env: Environment, source: Source, file: Path) -> int | None:
    """The partition of the source's log that a file would be in; None if the log would not read it."""
    if file.name[0] in "_." or not _matches(file.parts, _pattern(env, source).parts):
        return None
    numbers = [int(m[1]) for part in file.parts[:-1] if (m := re.fullmatch(r"partition=(\d+)", part))]
    return numbers[-1] if numbers else 0


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob pattern, part by part; `**` is any number of parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _files_of(env: Environment, source: Source, partition: int) -> list[Path]:
    """The files of one partition, in order."""
    paths = map(Path, glob.iglob(str(_pattern(env, source)), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(path for path in paths if path.is_file() and _partition_of(env, source, path) == partition)


def _letters(store: OfflineStore, source: str, reason: str | None) -> pl.DataFrame:
    """All letters of a source that are decided for good, in order."""
    pages = []
    for partition in partitions(store, source, "dead"):
        start = 0
        while True:
            page = list_dead(store, source, partition=partition, reason=reason, start=start, limit=_PAGE)
            # A letter beyond what is archived is not decided yet: a worker that crashed reads it again, with today's schema.
            pages.append(page.filter(pl.col("offset") < archived_end(store, source, partition)))
            if page.height < _PAGE:
                break
            start = int(page["offset"][-1]) + 1
    empty = pl.DataFrame(schema={"partition": pl.Int64(), **LETTER_COLUMNS})
    return pl.concat([empty, *pages])


def _decode(env: Environment, source: Source, page: pl.DataFrame, kind: str, header: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and dead letters of a page; `_offset` and `offset` are rows of the page."""
    raw: list[bytes] = page["raw"].to_list()
    arrival = page["arrival"].to_numpy().astype(np.int64) if page.height and not page["arrival"].has_nulls() else None
    offsets = np.arange(len(raw), dtype=np.int64)
    broken: tuple[tuple[int, bytes, str], ...] = ()
    payload: bytes | list[bytes] | pl.DataFrame
    if env.registered(source) is not None:
        # What was cut for its length is no value, though its beginning may look like one.
        broken = tuple((i, raw[i], why) for i, why in enumerate(page["reason"]) if why == too_long(MAX_RECORD))
        offsets = np.setdiff1d(offsets, np.array([i for i, _, _ in broken], dtype=np.int64))
        payload = [raw[i] for i in offsets.tolist()]
        arrival = None if arrival is None else arrival[offsets]
    elif kind == "csv":
        fields = [_fields(line) for line in raw]
        wrong = [i for i, f in enumerate(fields) if f is None or len(f) != len(header)]
        broken = tuple((i, raw[i], f"not a CSV record of {len(header)} fields") for i in wrong)
        rows = [f for i, f in enumerate(fields) if f is not None and i not in set(wrong)]
        offsets = np.array([i for i in range(len(raw)) if i not in set(wrong)], dtype=np.int64)
        payload = pl.DataFrame(rows, schema=dict.fromkeys(header, pl.String()), orient="row")
    else:
        # A newline within a letter can only come from a cut: the line was too long. It is one letter, and not good.
        payload = b"".join(line.replace(b"\n", b" ") + b"\n" for line in raw)
    events = env.decoder(source).decode(RecordBatch(0, 0, len(raw), offsets, payload, text=kind == "csv", arrival=arrival, broken=broken))
    return events.frame, events.dead


def _fields(line: bytes) -> list[str | None] | None:
    """A CSV record's fields, an empty one being null; None if it is no record."""
    try:
        rows = list(csv.reader([line.decode()], strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None
    return [field or None for field in rows[0]] if len(rows) == 1 else None


def _header(env: Environment, source: Source) -> list[str]:
    """The columns of the last CSV file of the log: letters do not say which file they came from."""
    log = env.log(source)
    for partition in log.partitions():
        files = _files_of(env, source, partition)
        for file in reversed(files):
            if file.suffix == ".csv":
                with file.open(encoding="utf-8", newline="") as lines:
                    return next(csv.reader(lines), [])
    raise LogError(f"source {source.name!r} has no .csv file to take the columns' names from: its letters cannot be read")


# ---- writing --------------------------------------------------------------------------------------------------------------------


def _write(
    store: OfflineStore, source: Source, to: Path, kind: str, letters: pl.DataFrame, decoded: Iterable[pl.DataFrame], header: list[str]
) -> None:
    """Note what is replayed, then let it appear; without the file the note goes too."""
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(6)}.tmp")
    key = ""
    try:
        appended = to.exists()
        if kind == "parquet":
            pl.concat(decoded).select(*source.schema).write_parquet(temporary)
        else:
            lines = b"".join(line + b"\n" for line in letters["raw"])
            if kind == "csv":
                lines = ",".join(_quoted(name) for name in header).encode() + b"\n" + lines
            if appended and not _ends_a_line(to):
                raise LogError(f"{to} ends in the middle of a line: end it with a newline first, or name a new file")
            temporary.write_bytes(lines)
        key = _note(store, source.name, str(to), letters)
        if appended:
            _append(to, temporary.read_bytes())
        else:
            os.link(temporary, to)  # refuses to replace a file that appeared meanwhile
    except OSError as error:
        if key:
            store.delete(key)
        raise TidemillError(f"cannot write {to}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _topic(env: Environment, source: Source) -> Any:
    """The source's topic. Raises `LogError` for a source that is read from files."""
    log: Any = env.log(source)
    if not hasattr(log, "deliver"):
        raise LogError(f"source {source.name!r} is read from files: say which one is to hold the letters, with --to FILE")
    return log


def _produce(store: OfflineStore, source: Source, topic: Any, letters: pl.DataFrame) -> None:
    """Note what is replayed, then let it appear; where it surely did not, the note goes too."""
    key = _note(store, source.name, f"topic {source.topic}", letters)
    try:
        topic.deliver(list(letters.select("partition", "raw").iter_rows()))
    except LogUnavailableError as error:  # it may be there all the same, and twice would be a wrong number
        text = f"{error}; the letters count as replayed: if the topic {source.topic} does not have them, say --again"
        raise LogUnavailableError(text) from error
    except LogError:
        store.delete(key)
        raise
    finally:
        topic.close()


def _note(store: OfflineStore, source: str, to: str, letters: pl.DataFrame) -> str:
    offsets: dict[str, list[int]] = {}
    for partition, offset in letters.select("partition", "offset").iter_rows():
        offsets.setdefault(str(partition), []).append(offset)
    data = json.dumps({"to": to, "offsets": offsets}).encode()
    number = len(store.list(f"replays/{source}")) + 1
    while not store.create(f"replays/{source}/{number:08d}.json", data):
        number += 1
    return f"replays/{source}/{number:08d}.json"


def _ends_a_line(file: Path) -> bool:
    size = file.stat().st_size
    if not size:
        return True
    with file.open("rb") as opened:
        opened.seek(size - 1)
        return opened.read(1) == b"\n"


def _append(file: Path, lines: bytes) -> None:
    """One write, so that nobody who appends to the same file gets in between."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        if os.write(descriptor, lines) < len(lines):
            raise OSError(0, "the disk took only a part of it; remove the cut line at the end")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n') else name
