"""The learner over a topic of predictions: the model that files make, whatever happens to the process, the partitions or the topic."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.learning.test_learner import Killed, by_learned, learned, to_the_end
from tests.learning.world import START, World, weights
from tests.servers.kafka import kafka_broker
from tidemill.apps import load
from tidemill.errors import LogChangedError, LogError, LogTruncatedError, LogUnavailableError
from tidemill.journals import journal_files
from tidemill.journals.reader import read_lines
from tidemill.learning import inputs, topic
from tidemill.learning.learner import Learner
from tidemill.logs.kafka import KafkaAdmin
from tidemill.logs.kafka.reader import KafkaReader
from tidemill.offline.directory import DirectoryStore
from tidemill.prediction_log import PREDICTIONS
from tidemill.times import DAY, from_micros

pytest.importorskip("kafka")
confluent_kafka = pytest.importorskip("confluent_kafka")
app = load("serving.learner")

__all__ = ["kafka_broker"]

pytestmark = pytest.mark.filterwarnings("ignore:.*<(socket.socket|ssl.SSLSocket):pytest.PytestUnraisableExceptionWarning")

COUNT = 260
PATIENCE = 30.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("topics") / "p", count=COUNT)


@pytest.fixture(scope="module")
def logged(made: World) -> list[bytes]:
    """The entries as the journal has them, one a prediction, in order."""
    store = made.env().offline
    return [line for file in journal_files(store, PREDICTIONS) for line in read_lines(store, file)]


@pytest.fixture(scope="module")
def right(made: World, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """The oracle: what is learned over files; test_learner holds that equal to River by hand."""
    world = made.copied(tmp_path_factory.mktemp("right") / "p")
    world.write(world.labels)
    learner = learned(world)
    assert learner.counts["learned"] == COUNT
    return learner


@pytest.fixture(scope="module")
def versions(right: Learner) -> Any:
    return by_learned_of(right)


def by_learned_of(learner: Learner) -> Any:
    world = World.__new__(World)
    world.path = learner._env.project.directory
    return by_learned(world)


class Topic:
    """A world whose predictions lie in a topic instead of files."""

    def __init__(self, world: World, brokers: str, partitions: int, client: str = "confluent") -> None:
        self.world, self.partitions, self.name = world, partitions, f"predictions-{uuid.uuid4().hex[:12]}"
        self.admin = KafkaAdmin(brokers)
        self.admin.create_topic(self.name, partitions)
        for file in (world.path / ".tidemill/offline/journals/predictions").rglob("*.jsonl"):
            file.unlink()
        with (world.path / "tidemill.toml").open("a") as toml:
            toml.write(f'[stream]\nbrokers = "{brokers}"\n[log]\npredictions_topic = "{self.name}"\n[kafka]\nclient = "{client}"\n')

    def log(self, lines: Sequence[bytes], dice: random.Random | None = None) -> None:
        """To random partitions; with no dice to the first."""
        self.admin.produce(self.name, [(dice.randrange(self.partitions) if dice else 0, b"", line) for line in lines])


@pytest.fixture
def in_a_topic(made: World, tmp_path: Path, kafka_broker: str) -> Iterator[Callable[..., Topic]]:
    found: list[Topic] = []

    def make(partitions: int = 1, client: str = "confluent") -> Topic:
        found.append(Topic(made.copied(tmp_path / f"p{len(found)}"), kafka_broker, partitions, client))
        return found[-1]

    yield make
    for each in found:
        each.admin.close()


def learner_of(world: World, **changed: Any) -> Learner:
    return Learner(world.env(), world.settings(**changed), now=lambda: START)


def say(*_: Any, **__: Any) -> None:
    """Nobody listens."""


# ---- the same as over files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("partitions", "client"), [(1, "confluent"), (3, "confluent"), (3, "python")])
def test_it_learns_what_it_learns_over_files(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner, versions: Any, partitions: int, client: str
) -> None:
    made = in_a_topic(partitions, client)
    made.log(logged, random.Random(partitions))
    made.world.write(made.world.labels)
    learner = learned(made.world)
    assert weights(learner.online.model) == weights(right.online.model)
    assert by_learned(made.world) == versions
    assert learner.metrics.metrics() == right.metrics.metrics()
    assert learner.counts == right.counts
    assert learner.joiner.counts == right.joiner.counts
    assert learner.predictions.damaged == 0


def test_what_is_in_the_topic_twice_is_learned_once(in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner) -> None:
    dice = random.Random(5)
    made = in_a_topic(3)
    twice = dice.sample(logged, 70)
    lines = [*logged, *twice]
    dice.shuffle(lines)
    made.log(lines, dice)
    made.world.write(made.world.labels)
    learner = learned(made.world)
    assert weights(learner.online.model) == weights(right.online.model)
    assert learner.joiner.counts == {**right.joiner.counts, "repeated_predictions": 70}


@pytest.mark.parametrize("client", ["confluent", "python"])
def test_no_prediction_is_lost_because_another_partition_is_ahead(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    """The second partition has old predictions, and answers when the first, and all labels, have long been read."""
    made = in_a_topic(2, client)
    made.admin.produce(made.name, [(1 if i < 50 or i % 7 == 0 else 0, b"", line) for i, line in enumerate(logged)])
    made.world.write(made.world.labels)
    read, slow = KafkaReader.read, [300]

    def slowly(self: KafkaReader, most: int) -> Any:
        if self.partition == 1 and slow[0]:
            slow[0] -= 1
            return None
        return read(self, min(most, 3))

    monkeypatch.setattr(KafkaReader, "read", slowly)
    learner = learned(made.world)
    assert slow[0] == 0
    assert learner.joiner.counts["late_predictions"] == 0
    assert weights(learner.online.model) == weights(right.online.model)


def test_what_a_transaction_took_back_is_not_learned(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner, kafka_broker: str
) -> None:
    made = in_a_topic()
    producer = confluent_kafka.Producer({"bootstrap.servers": kafka_broker, "transactional.id": uuid.uuid4().hex})
    producer.init_transactions(PATIENCE)
    aborted = [line.replace(b'"ids":["', b'"ids":["x') for line in logged]
    for commit, lines in ((True, logged[:100]), (False, aborted)):
        producer.begin_transaction()
        for line in lines:
            producer.produce(made.name, line)
        (producer.commit_transaction if commit else producer.abort_transaction)(PATIENCE)
    made.log(logged[100:])
    made.world.write(made.world.labels)
    learner = learned(made.world)
    assert learner.joiner.counts == right.joiner.counts
    assert weights(learner.online.model) == weights(right.online.model)


def test_files_that_were_not_read_when_a_topic_was_named_are_learned_too(
    made: World, in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner
) -> None:
    topical = in_a_topic()
    (file,) = journal_files(made.env().offline, PREDICTIONS)
    lines = (made.path / ".tidemill/offline" / file.key).read_text().splitlines()
    head = {**json.loads(lines[0]), "entries": 90}
    there = topical.world.path / ".tidemill/offline" / file.key
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_text("\n".join([json.dumps(head), *lines[1:91]]) + "\n")
    topical.log(logged[90:])
    topical.world.write(topical.world.labels)
    learner = learned(topical.world)
    assert learner.joiner.counts == right.joiner.counts
    assert weights(learner.online.model) == weights(right.online.model)


# ---- killed ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_with_predictions_and_labels_that_go_on_coming_it_ends_the_same(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner, versions: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    monkeypatch.setattr(inputs, "ROWS", dice.choice([7, 60]))
    monkeypatch.setattr(topic, "MESSAGES", dice.choice([5, 1000]))
    made = in_a_topic(dice.choice([1, 3]))
    world = made.world
    write, left = DirectoryStore.write, [0]

    def dying(self: Any, key: str, data: bytes) -> Any:
        left[0] -= 1
        if left[0] == 0 and dice.random() < 0.5:
            raise Killed
        write(self, key, data)
        if left[0] == 0:
            raise Killed

    monkeypatch.setattr(DirectoryStore, "write", dying)
    doubled = dice.sample(logged, 40)
    steps = [(logged[:90] + doubled[:20], world.labels[:80]), (logged[90:], world.labels[80:200]), (doubled[20:], world.labels[200:])]
    kills = 0
    for n, (lines, labels) in enumerate(steps):
        made.log(lines, dice)
        world.write(labels, end=n == len(steps) - 1)
        for attempt in range(4):
            left[0] = dice.randrange(1, 9) if attempt < 3 else -1
            learner = None
            try:
                learner = Learner(world.env(), world.settings(), now=lambda: START, checkpoint_seconds=0.0)
                to_the_end(learner)
                learner.close()
                break
            except Killed:
                kills += 1
                if learner is not None:
                    learner.let_go()
    assert kills >= 2
    learner = learner_of(world)
    to_the_end(learner)
    learner.let_go()
    assert weights(learner.online.model) == weights(right.online.model)
    assert by_learned(world) == versions
    assert learner.counts["learned"] == COUNT
    assert learner.joiner.counts["late_predictions"] == 0
    assert learner.joiner.counts["repeated_predictions"] + learner.joiner.counts["late_predictions"] == 40


def test_a_real_process_killed_hard_again_and_again_over_topics_ends_the_same(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner
) -> None:
    """Predictions and labels both lie in topics of several partitions, and go on coming."""
    made = in_a_topic(3)
    world, dice = made.world, random.Random(4)
    outcomes = f"outcomes-{uuid.uuid4().hex[:12]}"
    made.admin.create_topic(outcomes, 2)
    features = world.path / "features.py"
    features.write_text(features.read_text().replace('path="labels/**/*.jsonl"', f'topic="{outcomes}"'))

    def label(labels: Sequence[dict[str, Any]], *, everywhere: bool = False) -> None:
        messages = []
        for x in labels:  # their arrival is the record's own time, as Kafka has it: milliseconds
            value = json.dumps({**x, "at": from_micros(x["at"]).isoformat(), "known": None}).encode()
            messages += [(p, b"", value, x["known"]) for p in ((0, 1) if everywhere else (dice.randrange(2),))]
        made.admin.produce(outcomes, messages)

    # A partition that has said nothing yet holds nothing back: so both say that it is long before anything.
    first = {"prediction_id": "nobody", "bad": True, "at": START, "known": START}
    last = {**first, "at": START + 60 * DAY, "known": START + 60 * DAY}
    by_known = sorted(world.labels, key=lambda x: x["known"])
    label([first], everywhere=True)
    command = [sys.executable, "-c", "from tidemill.cli import main; main()", "learn", "--project", str(world.path)]
    doubled = dice.sample(logged, 30)
    for n in range(4):
        made.log([*logged[65 * n : 65 * (n + 1)], *doubled[7 * n : 7 * (n + 1)]], dice)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert "learning m" in process.stdout.readline()
            time.sleep(dice.random() / 2)
            label(by_known[65 * n : 65 * (n + 1)])
            time.sleep(dice.random())
            process.send_signal(signal.SIGKILL)
    label([last], everywhere=True)
    done = subprocess.run([*command, "--once", "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["learned"] == COUNT
    (final,) = [w for n, w in by_learned(world).items() if n == COUNT]
    assert final == weights(right.online.model)


def test_what_was_read_is_not_read_again(in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner) -> None:
    made = in_a_topic(2)
    dice = random.Random(2)
    made.log(logged[:100], dice)
    first = learned(made.world)
    assert first.joiner.waiting == 100
    assert sum((first.predictions.topic.positions if first.predictions.topic else {}).values()) == 100
    made.log(logged[100:], dice)
    made.world.write(made.world.labels)
    second = learned(made.world)
    assert second.joiner.counts == right.joiner.counts
    assert weights(second.online.model) == weights(right.online.model)


# ---- what is wrong with the topic -------------------------------------------------------------------------------------------------------


def recreate(made: Topic, partitions: int = 1) -> None:
    made.admin.delete_topic(made.name)
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            made.admin.create_topic(made.name, partitions)
            return
        except LogError:
            assert time.monotonic() < give_up
            time.sleep(0.1)


@pytest.mark.parametrize("restarted", [True, False], ids=["between two runs", "while it runs"])
def test_a_topic_that_was_created_again_is_refused(in_a_topic: Callable[..., Topic], logged: list[bytes], restarted: bool) -> None:
    made = in_a_topic()
    made.log(logged[:50])
    learner = learner_of(made.world)
    to_the_end(learner)
    learner.keep()
    before = made.world.env().offline.read("learners/m/checkpoint")
    if restarted:
        learner.let_go()
        learner = learner_of(made.world)
    recreate(made)
    made.log(logged[:90])
    made.world.write(made.world.labels)
    with pytest.raises(LogChangedError, match=r"deleted and created again.*log to another topic.*learners/m/checkpoint"):
        to_the_end(learner)
    learner.close()
    assert made.world.env().offline.read("learners/m/checkpoint") == before, "nothing of it is kept"
    assert learner.counts["learned"] == 0


def test_another_topic_is_read_from_its_beginning(in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner) -> None:
    made = in_a_topic()
    made.log(logged[:50])
    assert learned(made.world).joiner.waiting == 50
    other = f"{made.name}-2"
    made.admin.create_topic(other, 2)
    toml = made.world.path / "tidemill.toml"
    toml.write_text(toml.read_text().replace(made.name, other))
    made.admin.produce(other, [(i % 2, b"", line) for i, line in enumerate(logged[50:])])
    made.world.write(made.world.labels)
    assert weights(learned(made.world).online.model) == weights(right.online.model)


def test_predictions_that_the_brokers_have_deleted_are_an_error_and_to_a_new_learner_the_topic_begins_after_them(
    in_a_topic: Callable[..., Topic], logged: list[bytes]
) -> None:
    made = in_a_topic()
    made.log(logged[:10])
    learned(made.world)
    made.log(logged[10:50])
    made.admin.delete_records(made.name, {0: 20})
    with pytest.raises(LogTruncatedError, match=r"offset 10 is gone; the topic now begins at 20. What was not read .* delete .*checkpoint"):
        app.once(made.world.env(), made.world.settings(), say)
    made.world.env().offline.delete("learners/m/checkpoint")
    assert learned(made.world).joiner.waiting == 30


def test_partitions_that_are_added_are_read(in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner) -> None:
    made = in_a_topic()
    made.log(logged[:100])
    learner = learner_of(made.world)
    to_the_end(learner)
    made.admin.grow_topic(made.name, 3)
    made.admin.produce(made.name, [(i % 3, b"", line) for i, line in enumerate(logged[100:])])
    made.world.write(made.world.labels)
    to_the_end(learner)
    learner.close()
    assert weights(learner.online.model) == weights(right.online.model)


def test_messages_that_are_no_predictions_are_counted_and_passed_over(
    in_a_topic: Callable[..., Topic], logged: list[bytes], right: Learner
) -> None:
    made = in_a_topic()
    short = json.loads(logged[0])
    short["score"] = []
    other = logged[0].replace(b'"model":"m"', b'"model":"other"')
    assert other != logged[0]
    bad = [b"", b"{", b"[]", b"\xff", b'{"a":\n1}', b"a\nb", json.dumps(short).encode(), b"x" * (9 << 20)]
    made.log([*logged[:100], *bad, other, *logged[100:]])
    made.world.write(made.world.labels)
    learner = learned(made.world)
    assert learner.predictions.damaged == len(bad)
    assert weights(learner.online.model) == weights(right.online.model)


def test_a_topic_that_is_not_there_is_an_error_and_brokers_that_are_away_are_waited_for(
    in_a_topic: Callable[..., Topic], logged: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = in_a_topic()
    made.log(logged)
    made.world.write(made.world.labels)
    toml = made.world.path / "tidemill.toml"
    text = toml.read_text()
    toml.write_text(text.replace(made.name, "no-such-topic"))
    with pytest.raises(LogError, match="there is no topic 'no-such-topic'"):
        app.once(made.world.env(), made.world.settings(), say)
    toml.write_text(text)
    confirm, away, learned = KafkaReader.confirm, [2], [0]

    def sometimes(self: KafkaReader) -> None:
        confirm(self)
        if away[0]:
            away[0] -= 1
            raise LogUnavailableError("away")

    def seen(learner: Learner) -> None:
        learned[0] = learner.learned

    monkeypatch.setattr(KafkaReader, "confirm", sometimes)
    app.run(made.world.env(), made.world.settings(), say, lambda: learned[0] >= COUNT, seen=seen, sleep=lambda _: None)
    assert (away, learned) == ([0], [COUNT])


def test_a_topic_of_labels_that_was_created_again_is_refused_too(in_a_topic: Callable[..., Topic], logged: list[bytes]) -> None:
    made = in_a_topic()
    features = made.world.path / "features.py"
    labels = f"{made.name}-labels"
    features.write_text(features.read_text().replace('path="labels/**/*.jsonl"', f'topic="{labels}"'))
    made.log(logged)
    for again in (False, True):
        made.admin.create_topic(labels)
        if again:
            with pytest.raises(LogChangedError, match="deleted and created again"):
                app.once(made.world.env(), made.world.settings(), say)
        else:
            app.once(made.world.env(), made.world.settings(), say)
            made.admin.delete_topic(labels)
            time.sleep(0.5)


def test_labels_whose_oldest_the_brokers_have_deleted_are_read_from_where_their_source_says(
    in_a_topic: Callable[..., Topic], logged: list[bytes]
) -> None:
    made = in_a_topic()
    labels, features = f"{made.name}-labels", made.world.path / "features.py"
    text = features.read_text()
    made.admin.create_topic(labels)
    last = {"prediction_id": "nobody", "bad": True, "at": START + 60 * DAY, "known": START + 60 * DAY}
    some = [*sorted(made.world.labels, key=lambda x: x["known"]), last]
    values = [json.dumps({**x, "at": from_micros(x["at"]).isoformat(), "known": None}).encode() for x in some]
    made.admin.produce(labels, [(0, b"", value, x["known"]) for value, x in zip(values, some, strict=True)])
    made.admin.delete_records(labels, {0: 20})
    made.log(logged)
    features.write_text(text.replace('path="labels/**/*.jsonl"', f'topic="{labels}"'))
    with pytest.raises(LogTruncatedError, match="offset 0 is gone; the topic now begins at 20"):
        app.once(made.world.env(), made.world.settings(), say)
    features.write_text(text.replace('path="labels/**/*.jsonl"', f'topic="{labels}", start="earliest"'))
    assert app.once(made.world.env(), made.world.settings(), say)["counts"]["learned"] == COUNT - 20
    made.admin.delete_records(labels, {0: COUNT + 1})
    made.admin.produce(labels, [(0, b"", b"null"), (0, b"", b"null")])
    assert app.once(made.world.env(), made.world.settings(), say)["counts"]["labels_unreadable"] == 2, "it goes on where it was"
    made.admin.produce(labels, [(0, b"", b"null"), (0, b"", b"null")])
    made.admin.delete_records(labels, {0: COUNT + 4})
    with pytest.raises(LogTruncatedError, match="offset 263 is gone"):
        app.once(made.world.env(), made.world.settings(), say)
