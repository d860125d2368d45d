"""What a backfill would read and write, without writing anything."""

from __future__ import annotations

from dataclasses import dataclass

from tidemill.blocks import block_start
from tidemill.environment import Environment
from tidemill.offline.archive import archived_end, partitions
from tidemill.offline.cuts import imports_of, latest_cut
from tidemill.offline.history import Import, imports
from tidemill.offline.partials import Partials

from .inputs import InputFile, estimated_records, find_inputs
from .job import Request, import_id


@dataclass(frozen=True, slots=True)
class PlannedView:
    """One bundle of a view: the version that there is, and about how many events of the archive and of imports its fold would read."""

    view: str
    bundle: str
    version: int
    events: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`events`: of the files, about; None where nobody can say before they are read. `imported`: the import that these files are already.

    `known`: files whose name and size an earlier import has, by number of that import. `folder`: where the parts would lie.
    """

    files: tuple[InputFile, ...]
    bytes: int
    events: int | None
    folder: str | None
    imported: int | None
    known: dict[str, int]
    views: tuple[PlannedView, ...]


def plan(env: Environment, request: Request) -> Plan:
    """What `run` would do. Raises `LogError`, `StoreError`."""
    applied = env.applied()
    source = applied.sources[request.source]
    before = imports(env.offline, source.name)
    files = find_inputs(request.files, env.project.directory, request.format) if request.files else []
    id = import_id(source, files, request) if files else ""
    imported = next((made.number for made in before if made.id == id), None)
    counts = [estimated_records(file, request.format) for file in files]
    known = {(f.name, f.size): made.number for made in before for f in made.files}
    events = None if None in counts else sum(count or 0 for count in counts)
    coming = 0 if imported is not None or not files else events or 0
    views = [
        _view(env, source.name, b.view, Partials(env.offline, b.bundle), b.bundle.id, before, coming)
        for b in applied.of_source(source.name)
        if request.views is None or b.view in request.views
    ]
    again = {file.name: known[file.name, file.size] for file in files if (file.name, file.size) in known}
    folder = env.offline.path(f"history/{source.name}/{id}") if files else None
    return Plan(tuple(files), sum(file.size for file in files), events if files else 0, folder, imported, again, tuple(views))


def _view(env: Environment, source: str, view: str, partials: Partials, bundle: str, made: list[Import], coming: int) -> PlannedView:
    version = partials.latest()
    latest = latest_cut(env.offline, source)
    done = imports_of(env.offline, source, min(version.k, latest))
    ends = {p: block_start(archived_end(env.offline, source, p)) for p in partitions(env.offline, source)}
    archived = sum(max(end - version.vector.get(p, 0), 0) for p, end in ends.items())
    return PlannedView(view, bundle, version.k, archived + sum(each.events for each in made[done:]) + coming)
