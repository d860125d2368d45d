"""Which label a prediction gets: the same as by brute force, whatever was read when, and however often it died in between."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.strategies import examples
from tidemill.learning.join import LABEL_COUNTS, Example, Joiner, Label, Prediction

H = 10


def kept(joiner: Joiner) -> Any:
    """Its state as a checkpoint brings it back."""
    return msgspec.json.decode(msgspec.json.encode(joiner.state()))


def prediction(at: int, id: str, key: str | None = None) -> Prediction:
    return Prediction(at, id, key or id, f"[{at}]", 0.5, "ok", "1")


def by_hand(
    predictions: list[Prediction], partitions: list[list[Label]], lateness: int, by_id: bool
) -> tuple[list[Example], dict[str, int]]:
    """What comes of it all, by brute force."""
    labels, ends = [], []
    for records in partitions:
        newest = None
        for label in records:
            known = label.known if newest is None else max(label.known, newest - lateness)
            newest = label.known if newest is None else max(newest, label.known)
            labels.append(replace(label, known=known, time=min(label.time, known)))
        if newest is not None:
            ends.append(newest - lateness)
    end = min(ends, default=-(10**9))

    def own(label: Label, p: Prediction) -> bool:
        return label.key == p.key and (label.known if by_id else label.time) >= p.at

    found, got = [], {}
    for p in sorted(predictions):
        if p.at + H < end:
            mine = [label for label in labels if own(label, p) and label.known <= p.at + H]
            got[p.id] = max(mine, key=lambda x: (x.known, x.time, x.value), default=None)
            found.append(Example(p, got[p.id].value if got[p.id] else None))
    closed = [p for p in predictions if p.id in got]
    counts = Counter()
    taken: set[tuple[str, Label]] = set()
    for label in labels:
        if label.known + H >= end:
            continue
        near = [p for p in closed if own(label, p) and label.known <= p.at + 2 * H]
        winner = [p for p in near if got[p.id] == label]
        if not near:
            counts["unmatched"] += 1
        elif winner and not all((p.id, label) in taken for p in winner):
            counts["used"] += 1
            taken |= {(p.id, label) for p in winner}
        elif any(got[p.id] is not None and got[p.id].value == label.value for p in near):
            counts["duplicate"] += 1
        elif any(label.known <= p.at + H for p in near):
            counts["replaced"] += 1
        else:
            counts["late" if all(got[p.id] is None for p in near) else "revised_late"] += 1
    return found, {name: counts[name] for name in LABEL_COUNTS}


TIMES = st.integers(0, 60)


@st.composite
def logs(draw: Any) -> Any:
    by_id = draw(st.booleans())
    keys = ["a", "b", "c", "d"]
    if by_id:
        predictions = [prediction(draw(TIMES), k) for k in draw(st.lists(st.sampled_from(keys), unique=True))]
    else:
        rows = draw(st.lists(st.tuples(TIMES, st.sampled_from(keys[:2])), max_size=6))
        predictions = [prediction(at, f"p{i}", k) for i, (at, k) in enumerate(rows)]
    label = st.tuples(st.sampled_from(keys), st.integers(0, 2), TIMES, st.integers(0, 80)).map(lambda x: Label(*x))
    partitions = draw(st.lists(st.lists(label, max_size=8), min_size=1, max_size=2))
    partitions = [[*p, *draw(st.lists(st.sampled_from(p), max_size=2))] if p else p for p in partitions]  # duplicates
    if draw(st.booleans()):
        partitions = [[*p, Label("end", 0, 1000, 1000)] for p in partitions]
    return by_id, predictions, partitions, draw(st.sampled_from([0, 3, 100]))


@given(logs(), st.data())
@examples(400)
def test_it_is_as_by_hand_whatever_is_read_when(log: Any, data: Any) -> None:
    by_id, predictions, partitions, lateness = log
    want, counts = by_hand(predictions, partitions, lateness, by_id)
    joiner = Joiner(H, lateness, by_id)
    at = [0] * len(partitions)
    waiting = data.draw(st.permutations(predictions))
    found: list[Example] = []
    first = True
    while any(at[i] < len(p) for i, p in enumerate(partitions)) or first:
        portions = []
        for i, records in enumerate(partitions):
            n = data.draw(st.integers(1 if first else 0, 5))
            portions.append(records[at[i] : at[i] + n])
            at[i] += len(portions[-1])
        first = False
        ahead = Joiner(H, lateness, by_id)
        ahead.restore(kept(joiner))
        for i, some in enumerate(portions):
            for label in some:
                ahead.labelled(i, label)
        # The store has what these labels close; of the rest it may have some.
        more = data.draw(st.integers(0, len(waiting)))
        due = [p for p in waiting if p.at + H < ahead.watermark]
        new = due + [p for p in waiting[:more] if p not in due]
        waiting = [p for p in waiting if p not in new]
        for p in new:
            joiner.predicted(p)
            if data.draw(st.booleans()):
                joiner.predicted(p)  # a file that was read twice
        for i, some in enumerate(portions):
            for label in some:
                joiner.labelled(i, label)
        closing = joiner.closed()
        stop = data.draw(st.sampled_from([None, None, 0, 1]))
        for example in closing:
            found.append(example)
            if stop is not None:
                if stop == 0:
                    break
                stop -= 1
        if data.draw(st.booleans()):
            state = kept(joiner)
            joiner = Joiner(H, lateness, by_id)
            joiner.restore(state)
    found += joiner.closed()
    assert found == want
    assert {name: joiner.counts[name] for name in LABEL_COUNTS} == counts
    assert joiner.counts["late_predictions"] == 0


@given(logs(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_labels_in_another_order_and_twice_change_no_example_while_lateness_allows_it(log: Any, random: Any) -> None:
    by_id, predictions, partitions, _ = log
    ended = [[*(x for x in p if x.key != "end"), Label("end", 0, 1000, 1000)] for p in partitions]
    want, _ = by_hand(predictions, ended, 200, by_id)
    records = [label for p in ended for label in p[:-1]]
    records += random.sample(records, len(records) // 2)
    random.shuffle(records)
    joiner = Joiner(H, 200, by_id)
    for p in predictions:
        joiner.predicted(p)
    for label in [*records, ended[0][-1]]:
        joiner.labelled(0, label)
    assert list(joiner.closed()) == want
    assert len(want) == len(predictions)


def played(*labels: Label, at: int = 100) -> tuple[Any, dict[str, int]]:
    """What a prediction of the instant 100 learns from these labels, and what became of each."""
    joiner = Joiner(H)
    joiner.predicted(prediction(at, "p"))
    learned = []
    for label in [*labels, Label("end", 0, 10_000, 10_000)]:
        joiner.labelled(0, label)
        learned += [e.label for e in joiner.closed()]
    assert len(learned) == 1
    return learned[0], {k: v for k, v in joiner.counts.items() if v}


@pytest.mark.parametrize(
    ("labels", "learned", "counts"),
    [
        ([Label("p", 1, 101, 105)], 1, {"used": 1}),
        ([Label("p", 1, 101, 110)], 1, {"used": 1}),  # the horizon is the last instant that counts
        ([Label("p", 1, 101, 111)], None, {"late": 1}),
        ([], None, {}),
        ([Label("p", 1, 101, 105), Label("p", 1, 101, 105)], 1, {"used": 1, "duplicate": 1}),
        ([Label("p", 1, 101, 105), Label("p", 0, 101, 107)], 0, {"used": 1, "replaced": 1}),
        ([Label("p", 1, 101, 105), Label("p", 0, 101, 115)], 1, {"used": 1, "revised_late": 1}),
        ([Label("p", 1, 101, 105), Label("p", 1, 101, 115)], 1, {"used": 1, "duplicate": 1}),
        ([Label("p", 1, 101, 99), Label("q", 1, 101, 105)], None, {"unmatched": 2}),
        ([Label("p", 1, 50, 99)], None, {"unmatched": 1}),
        ([Label("p", 1, 101, 500)], None, {"unmatched": 1}),
    ],
)
def test_each_kind_of_label_has_one_treatment(labels: list[Label], learned: Any, counts: dict[str, int]) -> None:
    assert played(*labels) == (learned, counts)


def test_a_prediction_that_comes_when_its_time_is_over_is_counted_and_not_learned() -> None:
    joiner = Joiner(H)
    joiner.labelled(0, Label("p", 1, 500, 500))
    assert list(joiner.closed()) == []
    joiner.predicted(prediction(100, "p"))
    assert (list(joiner.closed()), joiner.counts["late_predictions"], joiner.waiting) == ([], 1, 0)


def test_a_partition_that_is_behind_holds_everything_back() -> None:
    joiner = Joiner(H)
    joiner.predicted(prediction(100, "p"))
    joiner.labelled(1, Label("q", 1, 100, 100))
    joiner.labelled(0, Label("p", 1, 500, 500))
    assert list(joiner.closed()) == []
    joiner.labelled(1, Label("p", 0, 105, 105))
    assert list(joiner.closed()) == []
    joiner.labelled(1, Label("q", 1, 111, 111))
    assert [e.label for e in joiner.closed()] == [0]


def test_what_is_over_is_forgotten() -> None:
    joiner = Joiner(H)
    for i in range(1000):
        joiner.predicted(prediction(i * 5, f"p{i}"))
        joiner.labelled(0, Label(f"p{i}", 1, i * 5 + 2, i * 5 + 2))
        list(joiner.closed())
    state = joiner.state()
    assert max(len(state[what]) for what in ("pending", "labels", "closed")) < 30
    assert joiner.counts["used"] > 950
