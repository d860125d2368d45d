"""The versions that a process serves: each a reference that is swapped, in the background, when another one is promoted.

A request takes the reference once, so its score and the version it names belong together. A thread looks once a second whether the
model's journal has a next entry; it alone reads the offline store after the first request, so one that is slow or away delays nobody.
A version that is refused (its hash, definitions, libraries, golden rows) changes nothing but `warning`: the one before goes on.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.errors import ModelRefusedError, NotFoundError, StoreUnavailableError, TidemillError
from tidemill.models.journal import CHAMPION, PREVIOUS
from tidemill.models.loaded import LoadedModel
from tidemill.models.registry import Models

#: How often a scorer looks whether another version was promoted.
LOOK_SECONDS = 1.0
#: So many versions that are asked for by their number are kept in memory, those that were asked for last: they grow ever more.
MAX_PINNED = 32
#: How a warning ends, but for the reason.
GOES_ON = " goes on"
#: Longer references are none: file systems have limits too.
MAX_REFERENCE = 200
#: How often a version that was refused is tried again: someone may have repaired it.
RETRY_SECONDS = 30.0

_NAME_ONE = "model is {!r}: name a registered model, such as 'delay', 'delay@challenger' or 'delay@3'"
_log = logging.getLogger("tidemill.models")


@dataclass(frozen=True)
class Serving:
    """A version that serves. `warning`: why it is not the one that is promoted, if so."""

    loaded: LoadedModel
    warning: str | None = None


class ServedModel:
    """One model reference (`name`, `name@alias`, `name@version`). `now` is the version in force, read without a lock.

    `looked`: when the journal was last seen, seconds since 1970.
    """

    def __init__(self, models: Models, reference: str, check: Callable[[LoadedModel], None]) -> None:
        """Load it. Raises what `Models.load` raises; a champion that is refused is stood in for by `previous`, if that can be loaded."""
        self.reference = reference
        self._models = models
        self._check = check
        self._name, _, which = reference.partition("@")
        self._alias = which or CHAMPION
        self.pinned = which.isascii() and which.isdigit()
        #: When it was last asked for, in monotonic seconds.
        self.used = time.monotonic()
        newest = models.journal(self._name).newest()
        self._n, self._aliases = newest.n, dict(newest.aliases)
        self._wanted = models.resolve(reference)[1]
        self._tried, self.looked = time.monotonic(), time.time()
        try:
            self.now = Serving(self._load(self._wanted))
        except ModelRefusedError as error:
            before = self._aliases.get(PREVIOUS)
            if self._alias != CHAMPION or before is None:
                raise
            try:
                stand_in = self._load(before)
            except TidemillError:
                raise error from None
            self.now = Serving(stand_in, self._refused(error, before))

    def look(self) -> None:
        """See whether another version is in force, and take it. Never raises; for one thread at a time."""
        if self.pinned:
            return
        wanted: str | None = self._wanted
        try:
            for entry in self._models.journal(self._name).after(self._n):
                self._n, self._aliases = entry.n, dict(entry.aliases)
            self.looked = time.time()
            wanted = self._aliases.get(self._alias)
            if wanted is None:  # a challenger that has become champion: whoever asks for it by that name goes on with it
                return
            new = wanted != self._wanted
            serves = self.now.loaded.manifest.version == wanted
            if serves or (not new and self.now.warning and time.monotonic() - self._tried < RETRY_SECONDS):
                if serves and self.now.warning:
                    self.now = Serving(self.now.loaded)
                self._wanted = wanted
                return
            self._tried = time.monotonic()
            self.now = Serving(self._load(wanted))
            self._wanted = wanted
            _log.info("%s: version %s serves now", self.reference, wanted)
        except StoreUnavailableError as error:  # the next look tries again; `looked` says for how long
            _log.debug("%s: the offline store does not answer: %s", self.reference, error)
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything, and must not end the thread
            self._wanted = wanted or self._wanted
            self.now = Serving(self.now.loaded, self._refused(error, self.now.loaded.manifest.version))

    def _load(self, version: str) -> LoadedModel:
        loaded = self._models.load(f"{self._name}@{version}")
        self._check(loaded)
        return loaded

    def _refused(self, error: Exception, instead: str) -> str:
        said = str(error) if isinstance(error, TidemillError) else f"{type(error).__name__}: {error}"
        what = f"version {self._wanted} is refused" if self._wanted != instead else "the registry cannot be read"
        warning = f"{what}, and version {instead}{GOES_ON}: {said}"
        if not hasattr(self, "now") or self.now.warning != warning:
            _log.warning("%s: %s", self.reference, warning)
        return warning


class ServedModels:
    """All that a process has been asked for, and the thread that looks after them."""

    def __init__(self, models: Models, check: Callable[[LoadedModel], None]) -> None:
        self._models = models
        self._check = check
        self._served: dict[str, ServedModel] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self, reference: str) -> ServedModel:
        """The model of a reference, loaded when it is first asked for. Raises what `Models.load` raises."""
        if not isinstance(reference, str):
            raise NotFoundError(_NAME_ONE.format(reference))
        found = self._served.get(reference)
        if found is not None:
            found.used = time.monotonic()
            return found
        name = reference.partition("@")[0]
        if not (
            name.isascii() and name.isidentifier() and len(reference) <= MAX_REFERENCE
        ):  # what a request may bring; the registry would call it a wrong definition
            raise NotFoundError(_NAME_ONE.format(reference))
        with self._lock:
            if reference not in self._served:
                made = ServedModel(self._models, reference, self._check)
                # A new table, because others go through this one meanwhile.
                self._served = {**self._kept(room=made.pinned), reference: made}
                self._start()
            return self._served[reference]

    def _kept(self, *, room: bool) -> dict[str, ServedModel]:
        pinned = sorted((s for s in self._served.values() if s.pinned), key=lambda s: s.used)
        gone = {s.reference for s in pinned[: max(0, len(pinned) + room - MAX_PINNED)]}
        return {reference: s for reference, s in self._served.items() if reference not in gone}

    def all(self) -> list[ServedModel]:
        """Everything that was asked for."""
        return list(self._served.values())

    def look(self) -> None:
        """Look now, in this thread: what the background thread does once a second."""
        with self._looking:
            for served in self.all():
                served.look()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=_keep_looking, args=(weakref.ref(self), self._stop), name="tidemill-models", daemon=True)
            self._thread.start()


def _keep_looking(of: weakref.ref[ServedModels], stop: threading.Event) -> None:
    """Until it is stopped, or its store is gone."""
    while not stop.wait(LOOK_SECONDS):
        served = of()
        if served is None:
            return
        served.look()
        del served
