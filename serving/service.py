"""What a worker answers, without HTTP: bodies in, bodies out. The reads block, so they are made in threads, of which there are a few."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec

from tidemill.client import FeatureStore
from tidemill.errors import StoreUnavailableError, TidemillError
from tidemill.journal import Journal
from tidemill.models.journal import CHAMPION
from tidemill.remote.wire import FeaturesRequest, ModelAnswer, ModelsAnswer, ScoreRequest

from .answering import Writer, told
from .counts import Counts, CountsFile, Loaded
from .decoding import decode
from .faults import Fault
from .keys import Keys
from .settings import Settings
from .threads import Threads

T = TypeVar("T")
G = TypeVar("G")
#: In seconds: for how long an answer to "are you ready" holds, and how long the store may take for it.
_READY_FOR, _PATIENCE = 1.0, 2.0


class Done(NamedTuple):
    """An answer's body, and how many rows it has; of scores also the model, its version, and rows by what became of them."""

    body: bytes
    rows: int = 0
    scored: tuple[str, str, dict[str, int]] | None = None


class Service:
    """One worker's part of a service. `file`: where its counts are told to the others, if there are any.

    Everything is to be used from the event loop's thread, but for `features`, `score` and `models`, which any thread may call.
    """

    def __init__(
        self, store: FeatureStore, settings: Settings, keys: Keys, journal: Journal, counts: Counts, file: CountsFile | None = None
    ) -> None:
        self.store, self.settings, self.keys, self.journal = store, settings, keys, journal
        self.counts, self.file = counts, file
        self._logged_before = {name: dict(outcomes) for name, outcomes in counts.logged.items()}  # by workers that this one carries on
        self._writer = Writer()
        self._features = msgspec.json.Decoder(FeaturesRequest)
        self._scores = msgspec.json.Decoder(ScoreRequest)
        self._threads = Threads(settings.threads)
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="ready")
        self._under_way = 0
        self._applied = 0
        self._checked: tuple[float, dict[str, str]] = (-_READY_FOR, {})
        self._check: asyncio.Future[dict[str, str]] | None = None

    def close(self) -> None:
        """Give back threads and connections."""
        self._threads.close()
        self._looking.shutdown(wait=False, cancel_futures=True)
        self.store.close()

    def warm_up(self) -> None:
        """What the first requests would else wait for: definitions, connections, the plan of every service, and models.

        Of the models those named in the settings; without any, the champion of each. Best effort: what is not there (a store that is
        away, definitions that are not applied) /readyz says, and requests will.
        """
        try:
            for service in self.store.env.definitions.services:
                self.store.warm_up(service)
            registry = self.store.models
            wanted = self.settings.models or [name for name in registry.names() if CHAMPION in registry.aliases(name)]
        except TidemillError as error:
            self.journal.warning("not everything is there yet", reason=str(error))
            return
        for reference in wanted:
            try:
                self.store.scorer.served.get(reference)
            except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
                self.journal.warning("a model is not loaded", model=reference, reason=str(error))

    # ---- requests ---------------------------------------------------------------------------------------------------------------

    def features(self, body: bytes) -> Done:
        """`POST /v1/features`. Raises `Fault`, and what the library raises."""
        request = decode(body, self._features, self.settings.max_rows)
        answer = self.store.get_online_features(request.features, request.entity_rows, at=request.at)
        return Done(self._writer.encode(self._writer.features(answer)), len(request.entity_rows))

    def score(self, body: bytes) -> Done:
        """`POST /v1/score`. Raises `Fault`, and what the library raises."""
        request = decode(body, self._scores, self.settings.max_rows)
        answer = self.store.score(
            request.model,
            request.entity_rows,
            at=request.at,
            fallback=request.fallback,
            max_missing=request.max_missing,
            request_id=request.request_id,
        )
        hidden = next((r for r in answer.reason if r is not None and told(r) != r), None)
        if hidden is not None:
            self.journal.warning("answered without the model", model=answer.model, reason=hidden)
        outcomes: dict[str, int] = {}
        for status in answer.status:
            outcomes[status] = outcomes.get(status, 0) + 1
        return Done(self._writer.encode(self._writer.scores(answer)), len(answer), (answer.model, answer.version, outcomes))

    def models(self, _: None) -> bytes:
        """`GET /v1/models`: all that are registered. Raises what the library raises."""
        registry = self.store.models
        found = [ModelAnswer(name, registry.versions(name), registry.aliases(name)) for name in registry.names()]
        return self._writer.encode(ModelsAnswer(found))

    async def computed(self, work: Callable[[G], T], given: G) -> T:
        """What `work` makes of what is given, in one of the threads. Raises `Fault` at once where too many are waiting already."""
        if not self.settings.threads:  # fewer steps, and a store that hangs holds up everything, /livez too
            return work(given)
        limit = self.settings.threads + self.settings.queue
        if self._under_way >= limit:
            raise Fault("overloaded", f"{limit} requests are under way in this worker: try again in a moment, or start more workers")
        self._under_way += 1
        try:
            found: T = await self._threads.run(work, given)
            return found
        finally:
            self._under_way -= 1

    # ---- health -----------------------------------------------------------------------------------------------------------------

    async def ready(self) -> dict[str, str]:
        """What keeps it from answering, by what was looked at: `ok`, or a sentence. Asked of the store once a second at most."""
        now = time.monotonic()
        if now - self._checked[0] < _READY_FOR:
            return self._checked[1]
        if self._check is None or self._check.done():
            self._check = asyncio.get_running_loop().run_in_executor(self._looking, self._look)
        try:
            found = await asyncio.wait_for(asyncio.shield(self._check), _PATIENCE)
        except TimeoutError:
            found = {"store": f"no answer within {_PATIENCE:g} s"}
        self._checked = time.monotonic(), found
        return found

    def _look(self) -> dict[str, str]:
        found: dict[str, str] = {}
        env = self.store.env
        try:
            self._applied = env.applied().version
        except StoreUnavailableError:
            pass  # requests go on with what was applied, too
        except TidemillError as error:
            self.journal.warning("the registry cannot be read", reason=str(error))
        found["definitions"] = "ok" if self._applied else "nothing is applied: run `tidemill apply`"
        try:
            for source in list(env.applied().sources if self._applied else ())[:1] or ["none"]:
                env.online.heartbeats(source)
            found["store"] = "ok"
        except TidemillError as error:
            self.journal.warning("the online store does not answer", reason=str(error))
            found["store"] = "does not answer"
        found |= self._models()
        return found

    def _models(self) -> dict[str, str]:
        """Of the models that must be there: whether they are loaded."""
        found = {}
        for reference in self.settings.models:
            try:
                self.store.scorer.served.get(reference)
                found[f"model {reference}"] = "ok"
            except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
                self.journal.warning("a model is not there", model=reference, reason=str(error))
                found[f"model {reference}"] = "not loaded"
        return found

    # ---- figures ----------------------------------------------------------------------------------------------------------------

    def all_counts(self) -> list[Counts]:
        """What all workers of the service have counted."""
        self.note()
        return [self.counts] if self.file is None else self.file.all()

    def note(self) -> None:
        """Take down which versions answer, and what the logs have written, for the metrics."""
        for log in (self.store.read_log, self.store.prediction_log):
            if log is not None:
                now, before = log.counts, self._logged_before.get(log.name, {})
                found = {"written": now.written, "dropped": now.dropped, "failed": now.failed}
                self.counts.logged[log.name] = {outcome: n + before.get(outcome, 0) for outcome, n in found.items()}
        if "scorer" in self.store.__dict__:
            served = [(each.reference, each.now, each.looked) for each in self.store.scorer.served.all()]
            self.counts.models = [Loaded(name, now.loaded.manifest.version, now.warning is not None, at) for name, now, at in served]
