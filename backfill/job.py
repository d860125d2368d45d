"""The job `backfill`: history from files becomes an import, and an import, or a new view's archive, is folded and published.

    plan      which files, which import, what there is to fold; nothing is written
    stage     files to parts in the offline store (`staging`)
    overlap   what of them is in the log too is left out (`overlap`)
    commit    the manifest, created once: now the import is there
    batch     cut, fold and publish, as ever (`batch.job`)

It may be killed at any instant and run again with the same arguments: what is done is not done again, and nothing counts twice.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tidemill.applied import AppliedBundle
from tidemill.apps.batch.engine import Budget, Engine, Spread
from tidemill.apps.batch.job import Progress, SourceResult, alone, run_source
from tidemill.definitions import Source
from tidemill.environment import Environment
from tidemill.errors import LeaseError, TidemillError
from tidemill.horizon import latest_of
from tidemill.kernel.memory import keep_freed_memory
from tidemill.logs.decode import Decoder
from tidemill.offline.history import Import, ImportedFile, Part, create_import, import_folder, imports, iter_parts
from tidemill.offline.store import read_json
from tidemill.stable import digest
from tidemill.times import BEGINNING, from_micros

from .inputs import InputFile, content_digest, estimated_records, find_inputs
from .overlap import BY_ID, BY_TIME, NONE, find_overlap, write_kept
from .staging import Bad, Staging, Stretch, count_letters

#: Unless `--memory` and `--max-bad` say something else.
MEMORY, ONE_PERCENT = 2 << 30, Bad(share=0.01)

#: Records of a part.
LEAST_ROWS, MOST_ROWS = 8_192, 262_144


class ImportedBeforeError(TidemillError):
    """A file was imported before, or is given twice."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. Times are UTC microseconds, `memory` bytes.

    `overlap` None: by id where the source has an event id, else by time.
    """

    source: str
    files: Sequence[str] = ()
    format: str | None = None
    views: tuple[str, ...] | None = None
    since: int | None = None
    until: int | None = None
    overlap: str | None = None
    before: int | None = None
    bad: Bad = ONE_PERCENT
    skip_imported: bool = False
    publishing: bool = True
    memory: int = MEMORY
    threads: int = 0

    @property
    def width(self) -> int:
        """How many files are staged at once."""
        return self.threads or os.cpu_count() or 1

    @property
    def budget(self) -> Budget:
        """What a fold may hold."""
        return Budget.of(self.memory)


@dataclass(frozen=True, slots=True)
class Result:
    """What a backfill did. `made`: the import; None without files, or where nothing of them was left to import.

    `fresh`: it was made by this run. `letters`: dead letters by reason. `folded`: None where another process holds the lease of batch,
    and will fold and publish with its next run.
    """

    made: Import | None
    fresh: bool
    letters: dict[str, int]
    folded: SourceResult | None
    seconds: float


def import_id(source: Source, files: Sequence[InputFile], request: Request) -> str:
    """What makes an import the same one: the files as they are now, the dates, and what the source's events are."""
    spec = source.spec()
    means = {name: spec[name] for name in ("schema", "timestamp", "event_id", "arrival", "max_ahead")}
    listed = [(file.name, file.size, file.stamp) for file in files]
    return digest({"files": listed, "since": request.since, "until": request.until, "format": request.format, **means})


def run(
    env: Environment,
    request: Request,
    progress: Progress | None = None,
    *,
    now: Callable[[], int] = lambda: time.time_ns() // 1000,
    engine: Engine | Spread | None = None,
) -> Result:
    """Import what is asked for, if anything is; then cut, fold and publish. See the module's text.

    Raises `TooManyBadError`, `OverlapError`, `ImportedBeforeError`, `LogError`, `StoreError`; then nothing was imported.
    """
    begun = time.monotonic()
    keep_freed_memory()
    applied = env.applied()
    source = applied.sources[request.source]
    made, fresh, letters = None, False, dict[str, int]()
    if request.files:
        files = find_inputs(request.files, env.project.directory, request.format)
        made, fresh, letters = import_files(env, source, applied.of_source(source.name), files, request, progress, now)
    folded: SourceResult | None
    try:
        with alone(env, progress) as report:
            folded = run_source(
                env, source.name, report, views=request.views, publishing=request.publishing, budget=request.budget, engine=engine
            )
    except LeaseError:
        if made is None:
            raise
        folded = None
    return Result(made, fresh, letters, folded, time.monotonic() - begun)


def import_files(
    env: Environment,
    source: Source,
    bundles: Sequence[AppliedBundle],
    files: Sequence[InputFile],
    request: Request,
    progress: Progress | None,
    now: Callable[[], int],
) -> tuple[Import | None, bool, dict[str, int]]:
    """Make the import of these files, or find it made; whether this run made it; and its dead letters by reason."""
    id = import_id(source, files, request)
    for made in imports(env.offline, source.name):
        if made.id == id:
            return made, False, count_letters(env.offline, source.name, id)
    at = _begun(env, source.name, id, now)
    digests = _digests(env, source.name, id, files, request.width, progress)
    skipped = _imported_before(source, imports(env.offline, source.name), files, digests, request, skip=request.skip_imported)
    budget = request.budget
    staging = Staging(
        env.offline,
        source,
        file_decoder(source),
        bundles,
        id,
        at,
        (request.since, request.until),
        request.bad,
        request.format,
        rows=max(LEAST_ROWS, min(MOST_ROWS, budget.rows // max(request.width, 1))),
        bytes=max(request.memory - (300 << 20), 64 << 20) // (8 * request.width),
        threads=request.width,
        progress=None if progress is None else lambda done, total: progress(f"read {source.name}", done, total),
    )
    wanted = {number: file for number, file in enumerate(files) if number not in skipped}
    about = sum(estimated_records(file, request.format) or 0 for file in wanted.values())
    stretches = staging.run(wanted, about)
    staged = [Staged(file, digests[number], stretches[number]) for number, file in wanted.items()]
    made_now, fresh = _commit(env, source, id, at, staged, request, progress)
    return made_now, fresh, count_letters(env.offline, source.name, id)


@dataclass(frozen=True, slots=True)
class Staged:
    """A file whose records are all in parts, or dead, or outside the dates asked for."""

    file: InputFile
    digest: str
    stretches: Sequence[Stretch]

    def told(self) -> ImportedFile:
        """What the manifest says of it."""
        some = self.stretches
        events = sum(s.part.rows for s in some if s.part is not None)
        records, dead, outside = sum(s.records for s in some), sum(s.dead for s in some), sum(s.outside for s in some)
        return ImportedFile(self.file.name, self.file.size, self.digest, records, events, dead, outside)


def _commit(
    env: Environment,
    source: Source,
    id: str,
    at: int,
    staged: Sequence[Staged],
    request: Request,
    progress: Progress | None,
) -> tuple[Import | None, bool]:
    """Leave out what counts already, and create the manifest under the first number that is free."""
    how = _compared(source, request)
    stretches = [s for each in staged for s in each.stretches if s.part is not None]
    parts = [s.part for s in stretches if s.part is not None]
    times = {s.part: (s.latest, s.arrived) for s in stretches if s.part is not None}
    total, done = sum(p.rows for p in parts), 0

    def report(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(f"compare {source.name}", done, total)

    while True:
        earlier = imports(env.offline, source.name)
        for made in earlier:
            if made.id == id:
                return made, False
        _imported_before(source, earlier, [each.file for each in staged], [each.digest for each in staged], request, skip=False)
        kept = find_overlap(env, source, parts, earlier, how, request.before, request.memory // 2)
        # Under names of this attempt: another process may leave out less, because it looked at the log earlier.
        folder = f"{import_folder(source.name, id)}/kept-{secrets.token_hex(4)}"
        left = write_kept(env, parts, kept, folder, report)
        if not left:
            return None, True
        newest = [times[p] if p in times else _newest(env, p) for p in left]
        made = Import(
            len(earlier) + 1,
            id,
            at,
            how,
            kept.before,
            sum(p.rows for p in left),
            kept.left_out,
            kept.repeated,
            kept.without_id,
            max(latest for latest, _ in newest),
            max(arrived for _, arrived in newest),
            tuple(each.told() for each in staged),
            tuple(left),
            request.since,
            request.until,
            kept.log_without_id,
        )
        if create_import(env.offline, source.name, made):
            return made, True


def _newest(env: Environment, part: Part) -> tuple[int, int]:
    latest = arrived = BEGINNING
    for _, frame in iter_parts(env.offline, (part,), {}):
        latest, arrived = max(latest, latest_of(frame["_time"])), max(arrived, latest_of(frame["_arrival"]))
    return latest, arrived


def file_decoder(source: Source) -> Decoder:
    """A source's decoder, for files: they are not Avro, whatever its topic carries."""
    return Decoder(source.schema, timestamp=source.timestamp, event_id=source.event_id, arrival=source.arrival, max_ahead=source.max_ahead)


def _begun(env: Environment, source: str, id: str, now: Callable[[], int]) -> int:
    """The instant of an import: when it was first begun, noted once, because events are judged by it."""
    key = f"{import_folder(source, id)}/begun.json"
    env.offline.create(key, json.dumps({"at": now()}).encode())
    at = read_json(env.offline, key, env.offline.read(key) or b"").get("at")
    assert isinstance(at, int)
    return at


def _digests(env: Environment, source: str, id: str, files: Sequence[InputFile], width: int, progress: Progress | None) -> list[str]:
    """The SHA-256 of every file; noted, so that they are read for it once."""
    folder = f"{import_folder(source, id)}/digests"
    total, done = sum(file.size for file in files), 0

    def of(number: int) -> str:
        nonlocal done
        key = f"{folder}/{number:05d}"
        known = env.offline.read(key)
        if known is None:
            with files[number].local() as path:
                known = content_digest(path).encode()
            env.offline.create(key, known)
        done += files[number].size
        if progress is not None:
            progress(f"check {source} (bytes)", done, total)
        return known.decode()

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(of, range(len(files))))


def _compared(source: Source, request: Request) -> str:
    """How what counts already is found."""
    return request.overlap or (BY_ID if source.event_id is not None else BY_TIME)


def _imported_before(
    source: Source, earlier: Sequence[Import], files: Sequence[InputFile], digests: Sequence[str], request: Request, *, skip: bool
) -> set[int]:
    """The numbers of the files that were imported before, if they may be; else raises `ImportedBeforeError`.

    Imports of other dates say nothing. A file that has changed since is another one, and only ids can tell which of its events are new.
    """
    earlier = [made for made in earlier if not made.apart(request.since, request.until)]
    whole = [made for made in earlier if made.covers(request.since, request.until)]
    partly = {file.digest: made for made in earlier if made not in whole for file in made.files}
    seen = {file.digest: f"import {made.number} has it as {file.name}" for made in whole for file in made.files}
    named = {file.name: made.number for made in earlier for file in made.files}
    again: dict[int, str] = {}
    for number, (file, content) in enumerate(zip(files, digests, strict=True)):
        if content in seen:
            again[number] = seen[content]
        elif content in partly:
            made = partly[content]
            raise ImportedBeforeError(
                f"{file.name}: import {made.number} has some of the dates asked for, those {_dates(made)}: say --since and --until "
                f"so that no date is in both"
            )
        elif file.name in named and _compared(source, request) == BY_TIME:
            raise ImportedBeforeError(
                f"{file.name}: import {named[file.name]} has a file of that name with other content, and nothing tells which of its events "
                f"are new: put new events into files of their own, or give the source an event_id; or --overlap {NONE}, if none is in both"
            )
        seen.setdefault(content, f"{file.name} is the same")
    if again and not skip:
        number, where = next(iter(again.items()))
        more = f", and {len(again) - 1} more like it" if len(again) > 1 else ""
        raise ImportedBeforeError(
            f"{files[number].name}: {where}{more}; every event would count twice: leave such files out, or say --skip-imported"
        )
    return set(again)


def _dates(made: Import) -> str:
    since = "" if made.since is None else f"from {from_micros(made.since).isoformat()} on"
    return since + ("" if made.until is None else f"{' and ' if since else ''}before {from_micros(made.until).isoformat()}")
