"""A project opened: its settings, its stores and its registry. What every command, worker and client starts from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tidemill.applied import NOTHING_APPLIED, Applied, apply_definitions
from tidemill.definitions import Definitions, Project, Source, load_definitions
from tidemill.errors import DefinitionError, LogError, NotAppliedError, StoreError
from tidemill.logs.base import Log
from tidemill.logs.decode import Decoder
from tidemill.logs.files import FileLog
from tidemill.logs.heads import StoredHeads
from tidemill.logs.registered.formats import FORMATS, Format
from tidemill.logs.registered.registry import SchemaRegistry, split_settings
from tidemill.offline.archive import partitions
from tidemill.offline.history import latest_import
from tidemill.offline.index import StoredFileIndex
from tidemill.offline.registry import Registry
from tidemill.offline.store import OfflineStore, read_json
from tidemill.online import open_online_store
from tidemill.online.base import OnlineStore, SlotId, SlotState


@dataclass
class Environment:
    """See the module's text. Opens lazily, so that `plan` needs no online store and a worker no definitions file."""

    project: Project
    _applied: Applied = field(default=NOTHING_APPLIED, repr=False)

    @classmethod
    def load(cls, directory: str | os.PathLike[str] = ".") -> Environment:
        """The project in a directory with a tidemill.toml. Raises `NotFoundError`, `DefinitionError`."""
        return cls(Project.load(directory))

    @cached_property
    def definitions(self) -> Definitions:
        """What the definitions file defines. Raises `DefinitionError`."""
        return load_definitions(self.project.definitions)

    @cached_property
    def online(self) -> OnlineStore:
        """The online store."""
        return open_online_store(self.project.online_url, base=self.project.directory)

    @cached_property
    def offline(self) -> OfflineStore:
        """The offline store."""
        return OfflineStore.open(self.project.offline_url, base=self.project.directory)

    @cached_property
    def registry(self) -> Registry:
        """The registry of applied definitions."""
        return Registry(self.offline)

    def applied(self) -> Applied:
        """The registry's newest version, compiled once."""
        version = self.registry.version()
        if version != self._applied.version:
            current = self.registry.current()
            self._applied = NOTHING_APPLIED if current is None else Applied.from_spec(*current)
        return self._applied

    def planned(self) -> Applied:
        """What `apply` would write now. Raises `DefinitionError` for a number of shards that would change."""
        before = self.applied()
        configured = self.project.shards
        if before.version and configured != before.shards:
            raise DefinitionError(
                f"online.shards is {configured}, and this project was applied with {before.shards}: set it back, or run "
                f"`tidemill reshard`, which spreads everything anew"
            )
        return self._planned(configured)

    def resharded(self) -> Applied:
        """What is applied, over as many shards as tidemill.toml says now: every bundle is a new one.

        Raises `NotAppliedError` before the first `apply`, and `DefinitionError` for definitions that are to be applied first.
        """
        before = self.applied()
        if not before.version:
            raise NotAppliedError("nothing is applied yet, so there is nothing to spread anew: run `tidemill apply`")
        if self._planned(before.shards).spec() != before.spec():
            raise DefinitionError(
                f"the definitions say something else than is applied: set online.shards back to {before.shards}, run `tidemill apply`, "
                f"then change it to {self.project.shards} and run `tidemill reshard`"
            )
        return self._planned(self.project.shards)

    def _planned(self, shards: int) -> Applied:
        archived = {name for name in self.definitions.sources if partitions(self.offline, name) or latest_import(self.offline, name)}
        return apply_definitions(self.definitions, self.applied(), shards, archived)

    def apply(self, after: Applied | None = None) -> Applied:
        """Write the definitions (or `after`, made by `resharded`) to the registry, unless they are there already.

        A bundle that comes back after it was retired begins anew: what the store still had of it may be long out of date. Raises
        `StoreError` if someone else has just written.
        """
        before, after = self.applied(), after or self.planned()
        if after.version != before.version + 1:
            raise StoreError(f"version {before.version} was applied meanwhile: look at it with `tidemill plan`, then run this again")
        if before.version and before.spec() == after.spec():
            return before
        Applied.from_spec(after.version, after.spec())  # what could not be read back must not be committed
        kept = {b.bundle.id for b in before.bundles}
        self.forget([b.bundle.id for b in after.bundles if b.bundle.id not in kept], after.shards)
        self.registry.commit(after.spec(), expect=before.version)
        return self.applied()

    def forget(self, bundles: Iterable[str], shards: int) -> int:
        """Remove what the online store has of these bundles; how many slots held anything."""
        slots = [SlotId(b, s) for b in bundles for s in range(shards)]
        held = [slot for slot, state in zip(slots, self.online.slots(slots), strict=True) if state != SlotState()]
        for slot in held:
            self.online.reset(slot)
        return len(held)

    def forget_retired(self) -> int:
        """Remove what the online store has of bundles that answer no feature any more; how many slots held anything."""
        widest = max((spec["shards"] for _, spec in self.registry.history()), default=0)
        return self.forget(self.retired(), widest)

    def retired(self) -> list[str]:
        """Bundles of earlier versions of the registry that answer no feature any more."""
        now = {b.bundle.id for b in self.applied().bundles}
        then = {b["id"] for _, spec in self.registry.history() for v in spec["views"].values() for b in v["bundles"]}
        return sorted(then - now)

    def log(self, source: Source) -> Log:
        """A source's log: its topic, where the project has brokers, else its files. Raises `LogError`."""
        brokers = self.project.brokers
        if brokers is not None and source.topic is not None:
            from tidemill.logs.kafka import KafkaLog  # needs the extra

            settings = self.kafka_settings()
            client: Any = settings.pop("client", None)
            lines = self.registered(source) is None
            return KafkaLog(brokers, source.topic, client=client, settings=settings, topic_id=self._topic_id(source), lines=lines)
        if source.path is None:
            raise LogError(f"source {source.name!r} has no `path`, and this project has no brokers: give it one of them")
        columns = list(dict.fromkeys([*source.schema, *([source.arrival] if source.arrival else [])]))
        return FileLog(
            self.project.resolve(source.path),
            format=source.format,
            index=StoredFileIndex(self.offline, source.name),
            heads=StoredHeads(self.offline, source.name),
            columns=columns,
            timestamp=source.timestamp,
        )

    def kafka_settings(self) -> dict[str, str]:
        """[kafka] of tidemill.toml: `client`, which is tidemill's, and what is for the client itself."""
        return split_settings(self.project.settings.get("kafka", {}))[0]

    def remember_topic(self, source: Source, log: Log) -> None:
        """Note which topic a source's offsets are of, so that one that was deleted and created again is noticed, also after a restart.

        For whoever is about to stream it. Raises `LogError`.
        """
        topic_id = getattr(log, "topic_id", None)
        if topic_id and self._topic_id(source) is None:
            self.offline.write(self._topic_key(source), json.dumps({"topic": source.topic, "id": topic_id}).encode())

    def _topic_id(self, source: Source) -> str | None:
        """The id of the source's topic as it was first streamed; None if it is another topic by name, or was never streamed."""
        key = self._topic_key(source)
        data = self.offline.read(key)
        noted = {} if data is None else read_json(self.offline, key, data)
        return str(noted["id"]) if noted.get("topic") == source.topic and noted.get("id") else None

    @staticmethod
    def _topic_key(source: Source) -> str:
        return f"index/{source.name}/topic.json"

    def registered(self, source: Source) -> Format | None:
        """The format of a source's records if a registry has their schemas: it is read from its topic then, and not from files."""
        return FORMATS.get(source.value_format) if self.project.brokers is not None and source.topic is not None else None

    def schemas(self, format: Format) -> SchemaRegistry:
        """The registry of a format's schemas, shared by all decoders.

        Raises `LogError` where [kafka] names none, or the extra is missing.
        """
        if format.kind not in self._schemas:
            _, settings = split_settings(self.project.settings.get("kafka", {}))
            if "url" not in settings:
                raise LogError(
                    f"{format.title} topics need a schema registry, and tidemill.toml names none: "
                    'add "schema.registry.url" = "http://..." to [kafka]'
                )
            self._schemas[format.kind] = SchemaRegistry(settings, format)
        return self._schemas[format.kind]

    @cached_property
    def _schemas(self) -> dict[str, SchemaRegistry]:
        return {}

    def decoder(self, source: Source) -> Decoder:
        """What makes columns of a source's records. Raises `LogError` where they cannot be read here."""
        format = self.registered(source)
        return Decoder(
            source.schema,
            timestamp=source.timestamp,
            event_id=source.event_id,
            arrival=source.arrival,
            max_ahead=source.max_ahead,
            schemas=None if format is None else self.schemas(format),
        )

    def path(self, *parts: str) -> Path:
        """A path below the project's directory."""
        return self.project.directory.joinpath(*parts)
