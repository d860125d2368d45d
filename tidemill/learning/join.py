"""Which label a prediction gets, and in which order examples are learned. Pure: no clock, no files.

A prediction of the instant `at` is **closed** at `at + horizon`, and examples are learned in the order of (`at`, prediction id). What it
gets is decided by what labels say of themselves and by their place in their partition, never by when or in which portions they were read:

- A label is **known** at its arrival time, or where the log has none at its event time; but never before the partition's watermark at
  its place, which is the largest time known there so far less `lateness`. What it is about happened when it was known, at the latest.
- A prediction gets the label with its key that was known last, at `at + horizon` at the latest; of labels known at once the one with the
  later event time, then the larger value. A label from before `at` is not its own: by when it was known, where it names the
  prediction's id; where it is joined by other columns, by its event time.
- It is closed when the watermarks of all partitions have passed `at + horizon`: no label that comes can count any more.

What each label came to is counted when no prediction can want it any more: see `LABEL_COUNTS`.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, TypeVar

import msgspec

from tidemill.times import BEGINNING

T = TypeVar("T")
#: What becomes of a label. `used`: it was learned. `duplicate`: it says what was learned anyhow. `replaced`: a later one came before its
#: prediction was closed. `late`: its prediction had been closed without a label. `revised_late`: another one had been learned, and is not
#: unlearned. `unmatched`: no prediction that it could be of was logged.
LABEL_COUNTS = ("used", "duplicate", "replaced", "late", "revised_late", "unmatched")


class Prediction(msgspec.Struct, frozen=True, order=True, gc=False, array_like=True):
    """A logged prediction: `score` as it was served; `x` the features in the model's order, as JSON, which takes less room meanwhile.

    `meaning`: which of the meanings that the features of this model have had these have, see `PredictionFiles.meanings`.
    """

    at: int
    id: str
    key: str
    x: str
    score: float | None
    outcome: str
    version: str
    meaning: int = 0


class Label(msgspec.Struct, frozen=True, gc=False):
    """A label as its record says: instants in UTC microseconds, `known` when it arrived."""

    key: str
    value: Any
    time: int
    known: int


class Example(msgspec.Struct, frozen=True, gc=False):
    """A closed prediction; `label` is None where none came in time."""

    prediction: Prediction
    label: Any


class _Held(msgspec.Struct, frozen=True, gc=False, array_like=True):
    known: int
    time: int
    value: Any
    number: int


class _Closed(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A prediction that was closed, while labels of it may still come: the label that it got, by value and number."""

    at: int
    id: str
    value: Any
    number: int | None


@dataclass
class Joiner:
    """See the module's text. `by_id`: keys are prediction ids."""

    horizon: int
    lateness: int = 0
    by_id: bool = True
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*LABEL_COUNTS, "late_predictions", "repeated_predictions"), 0))
    #: Per partition of the labels, the largest `known` so far.
    newest: dict[int, int] = field(default_factory=dict)
    #: Everything up to here was closed.
    frontier: int = BEGINNING
    #: The prediction that was closed last, by its instant and id.
    last: tuple[int, str] = (BEGINNING, "")
    #: The last one that had been closed by whoever made the model that this began with: it knows what came of that and of all before.
    begun: tuple[int, str] = (BEGINNING, "")
    #: In order; those before `_head` are being closed.
    _pending: list[Prediction] = field(default_factory=list)
    _head: int = 0
    _ids: set[str] = field(default_factory=set)
    #: By key: as usual one, or several in a list.
    _labels: dict[str, _Held | list[_Held]] = field(default_factory=dict)
    #: When labels can be forgotten: (instant, number, key), in order as they come, which is as usual, and a heap of those that did not.
    _expiring: deque[tuple[int, int, str]] = field(default_factory=deque)
    _astray: list[tuple[int, int, str]] = field(default_factory=list)
    _closed: dict[str, _Closed | list[_Closed]] = field(default_factory=dict)
    #: With their keys, in the order in which they were closed.
    _forgetting: deque[tuple[str, _Closed]] = field(default_factory=deque)
    _number: int = 0

    @property
    def waiting(self) -> int:
        """How many predictions wait for their horizon."""
        return len(self._pending) - self._head

    @property
    def watermark(self) -> int:
        """Every label known before has been read."""
        return min(self.newest.values(), default=BEGINNING) - (self.lateness if self.newest else 0)

    def predicted(self, prediction: Prediction) -> None:
        """Take a prediction. One that should have been closed already, or was taken before (also by whoever made the model), is counted."""
        if prediction.id in self._ids or (prediction.at, prediction.id) <= self.begun:
            self.counts["repeated_predictions"] += 1
        elif prediction.at + self.horizon < self.frontier:
            self.counts["late_predictions"] += 1
        else:
            self._ids.add(prediction.id)
            pending = self._pending
            if not pending or pending[-1] < prediction:  # as usual: they are logged in the order of their instants
                pending.append(prediction)
            else:
                insort(pending, prediction, lo=self._head)

    def labelled(self, partition: int, label: Label) -> None:
        """Take the next label of a partition of the log."""
        key, known, time = label.key, label.known, label.time
        newest = self.newest.get(partition)
        if newest is None or known > newest:
            self.newest[partition] = known
        elif known < newest - self.lateness:
            known = newest - self.lateness
        self._number = number = self._number + 1
        held = _Held(known, min(known, time), label.value, number)
        before = self._labels.setdefault(key, held)
        if before is not held:
            self._labels[key] = [*_each(before), held]
        due = (known + self.horizon, number, key)
        if not self._expiring or self._expiring[-1] < due:
            self._expiring.append(due)
        else:
            heappush(self._astray, due)

    def closed(self) -> Iterator[Example]:
        """The predictions that can be closed now, in order. Take all of them, or stop: the rest comes the next time."""
        watermark, horizon, pending = self.watermark, self.horizon, self._pending
        labels, remembered, forgetting = self._labels, self._closed, self._forgetting
        try:
            while self._head < len(pending) and pending[self._head].at + horizon < watermark:
                prediction = pending[self._head]
                self._head += 1
                at, id, key = prediction.at, prediction.id, prediction.key
                # Not the watermark: whoever stops here has closed no more than this.
                self.frontier, self.last = at + horizon, (at, id)
                held = labels.get(key)
                best = None if held is None else self._best(at, held)
                value, number = (None, None) if best is None else (best.value, best.number)
                closed = _Closed(at, id, value, number)
                before = remembered.setdefault(key, closed)
                if before is not closed:
                    remembered[key] = [*_each(before), closed]
                forgetting.append((key, closed))
                yield Example(prediction, value)
        finally:
            del pending[: self._head]
            self._head = 0
        self.frontier = max(self.frontier, watermark)
        self._expire(watermark)

    def _best(self, at: int, held: _Held | list[_Held]) -> _Held | None:
        own = [h for h in _each(held) if h.known <= at + self.horizon and self._after(h, at)]
        if len(own) < 2:
            return own[0] if own else None
        return max(own, key=lambda h: (h.known, h.time, _ordered(h.value), -h.number))

    def _after(self, label: _Held, at: int) -> bool:
        """Whether a label can be of a prediction of this instant: it came, or is of an event, no earlier."""
        return (label.known if self.by_id else label.time) >= at

    def _expire(self, watermark: int) -> None:
        """Count the labels that no prediction can want any more, then forget predictions that none can be of."""
        labels, counts = self._labels, self.counts
        for _, number, key in self._due(watermark):
            held = labels.pop(key)
            if isinstance(held, list):
                (one,) = (h for h in held if h.number == number)
                labels[key] = _bare([h for h in held if h is not one])
            else:
                one = held
            counts[self._came_to(one, key)] += 1
        forgetting, remembered, since = self._forgetting, self._closed, watermark - 4 * self.horizon
        while forgetting and forgetting[0][1].at < since:
            key, gone = forgetting.popleft()
            self._ids.discard(gone.id)
            closed = remembered.pop(key)
            if type(closed) is list:
                remembered[key] = _bare([c for c in closed if c is not gone])

    def _due(self, watermark: int) -> Iterator[tuple[int, int, str]]:
        expiring, astray = self._expiring, self._astray
        while True:
            if astray and (not expiring or astray[0] < expiring[0]):
                if astray[0][0] >= watermark:
                    return
                yield heappop(astray)
            elif expiring and expiring[0][0] < watermark:
                yield expiring.popleft()
            else:
                return

    def _came_to(self, label: _Held, key: str) -> str:
        closed = self._closed.get(key)
        if type(closed) is _Closed and closed.number == label.number:
            return "used"  # as usual
        # The bound decides what counts as its own, so that it does not matter how long predictions really are remembered.
        mine = [c for c in _each(closed) if label.known <= c.at + 2 * self.horizon and self._after(label, c.at)]
        if not mine:
            return "unmatched"
        if any(c.number == label.number for c in mine):
            return "used"
        if any(c.number is not None and c.value == label.value for c in mine):
            return "duplicate"
        if any(label.known <= c.at + self.horizon for c in mine):
            return "replaced"
        return "late" if all(c.number is None for c in mine) else "revised_late"

    # ---- to a checkpoint and back -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, for `msgspec` to encode at once: what it holds is this object's own."""
        return {
            "counts": dict(self.counts),
            "newest": {str(p): n for p, n in self.newest.items()},
            "frontier": self.frontier,
            "last": self.last,
            "begun": self.begun,
            "number": self._number,
            "pending": self._pending[self._head :],
            "labels": self._labels,
            "closed": self._closed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """What `state` said, decoded to plain values."""
        self.counts, self.frontier, self._number = dict(state["counts"]), state["frontier"], state["number"]
        self.newest = {int(p): n for p, n in state["newest"].items()}
        for name in ("last", "begun"):
            at, id = state.get(name, (BEGINNING, ""))
            setattr(self, name, (at, id))
        self._pending = [Prediction(*p) for p in state["pending"]]
        self._labels, self._astray, self._closed = {}, [], {}
        expiring: list[tuple[int, int, str]] = []
        for key, held in state["labels"].items():
            some = [_Held(*h) for h in (held if isinstance(held[0], list) else [held])]
            self._labels[key] = _bare(some)
            expiring += [(h.known + self.horizon, h.number, key) for h in some]
        closed = []
        for key, found in state["closed"].items():
            those = [_Closed(*c) for c in (found if isinstance(found[0], list) else [found])]
            self._closed[key] = _bare(those)
            closed += [(key, c) for c in those]
        self._pending.sort()
        self._expiring = deque(sorted(expiring))
        self._forgetting = deque(sorted(closed, key=lambda each: (each[1].at, each[1].id)))  # as they were closed
        self._ids = {p.id for p in self._pending} | {c.id for _, c in closed}


def _each(some: T | list[T] | None) -> Sequence[T]:
    """Of one, several or none: each."""
    return some if isinstance(some, list) else () if some is None else (some,)


def _bare(some: list[T]) -> T | list[T]:
    """The other way round, of at least one."""
    return some if len(some) > 1 else some[0]


def _ordered(value: Any) -> tuple[str, Any]:
    """An order among values of any type."""
    return ("", float(value)) if isinstance(value, (bool, int, float)) else (type(value).__name__, value)
