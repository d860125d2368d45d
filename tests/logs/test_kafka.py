"""Both readers of Kafka topics, against a real broker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.logs.contract import LogContract, read_all, records
from tests.servers import certificates
from tests.servers.kafka import PASSWORD, USER, Broker, broker_to_stop, kafka_broker
from tidemill.errors import LogChangedError, LogError, LogTruncatedError, LogUnavailableError
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder
from tidemill.logs.kafka import KafkaAdmin, KafkaLog, KafkaReader
from tidemill.logs.kafka.batches import record_batch
from tidemill.logs.kafka.settings import Settings
from tidemill.logs.records import MAX_RECORD, RAW_KEPT
from tidemill.types import ColumnType

pytest.importorskip("kafka")
confluent_kafka = pytest.importorskip("confluent_kafka")

__all__ = ["broker_to_stop", "kafka_broker"]

# kafka-python leaves the sockets of refused connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<(socket.socket|ssl.SSLSocket):pytest.PytestUnraisableExceptionWarning")

#: In seconds: how long anything may take.
PATIENCE = 30.0
#: Little is fetched ahead, so that there is something that has not been fetched yet.
SPARING = {"fetch.message.max.bytes": "2000"}
SPARING_TOO = {"queued.min.messages": "1", "queued.max.messages.kbytes": "1"}


class PatientReader:
    """Reads up to the end of the log as it is now: a fetch takes a moment, and a reader does not wait for it."""

    def __init__(self, log: KafkaLog, reader: KafkaReader) -> None:
        self._log, self.inner = log, reader
        self.seek, self.close, self.confirm = reader.seek, reader.close, reader.confirm

    def read(self, max_records: int) -> RecordBatch | None:
        end = self._log.end(self.inner.partition)
        give_up = time.monotonic() + PATIENCE
        while self.inner.position < end:
            batch = self.inner.read(max_records)
            if batch is not None:
                return batch
            assert time.monotonic() < give_up, f"stands at {self.inner.position}, the end is {end}"
            time.sleep(0.001)
        return self.inner.read(max_records)


class PatientLog(KafkaLog):
    def open(self, partition: int, offset: int) -> Any:
        return PatientReader(self, super().open(partition, offset))


def eventually(holds: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def fails(reader: KafkaReader, error: type[LogError], match: str) -> list[RecordBatch]:
    """Read until it raises this; what was read before."""
    give_up = time.monotonic() + PATIENCE
    got: list[RecordBatch] = []
    with pytest.raises(error, match=match):  # noqa: PT012
        while time.monotonic() < give_up:
            batch = reader.read(10)
            if batch is None:
                time.sleep(0.01)
            else:
                got.append(batch)
    return got


class KafkaContract(LogContract):
    client: Any

    @pytest.fixture(autouse=True)
    def prepare(self, kafka_broker: str) -> Iterator[None]:
        self.broker = kafka_broker
        self.topic = f"events-{uuid.uuid4().hex[:12]}"
        self.admin = KafkaAdmin(kafka_broker)
        self.admin.create_topic(self.topic, 2)
        self.logs: list[KafkaLog] = []
        yield
        for log in self.logs:
            log.close()
        self.admin.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # such sockets, before they are another test's

    def append(self, partition: int, lines: list[bytes]) -> None:
        self.produce(lines, partition=partition)

    def produce(
        self, values: Sequence[bytes | None], *, partition: int = 0, topic: str | None = None, compression: str | None = None
    ) -> None:
        self.admin.produce(topic or self.topic, [(partition, b"key", value) for value in values], compression=compression)

    def log(self, **options: Any) -> PatientLog:
        return self.keep(PatientLog(self.broker, options.pop("topic", self.topic), client=self.client, **options))

    def bare(self, **options: Any) -> KafkaLog:
        return self.keep(KafkaLog(self.broker, options.pop("topic", self.topic), client=self.client, **options))

    def keep(self, log: Any) -> Any:
        self.logs.append(log)
        return log

    def transaction(self, values: list[bytes], *, commit: bool | None) -> Any:
        """On partition 0. `commit` None leaves it open: the producer is returned."""
        producer = confluent_kafka.Producer({"bootstrap.servers": self.broker, "transactional.id": uuid.uuid4().hex})
        producer.init_transactions(PATIENCE)
        producer.begin_transaction()
        for value in values:
            producer.produce(self.topic, value, partition=0)
        producer.flush(PATIENCE)
        if commit is not None:
            (producer.commit_transaction if commit else producer.abort_transaction)(PATIENCE)
        return producer

    # ---- what Kafka leaves out --------------------------------------------------------------------------------------------------

    def test_values_that_are_no_lines_are_listed_as_they_are(self) -> None:
        values: list[bytes | None] = [b"\0\n\n", None, b"", b"\xff"]
        self.produce(values)
        batches = read_all(self.log(lines=False).open(0, 0), 10)
        assert [value for batch in batches for value in batch.payload] == [b"\0\n\n", b"", b"\xff"]
        assert [offset for batch in batches for offset in batch.offsets.tolist()] == [0, 2, 3]

    def test_aborted_records_are_not_read_and_leave_gaps(self) -> None:
        self.append(0, self.lines(2, "plain"))
        self.transaction(self.lines(3, "aborted"), commit=False)
        self.transaction(self.lines(3, "committed"), commit=True)
        self.append(0, self.lines(2, "after"))
        log = self.log()
        batches = read_all(log.open(0, 0), 4)
        found = records(batches)
        assert [line for _, line in found] == self.lines(2, "plain") + self.lines(3, "committed") + self.lines(2, "after")
        assert [offset for offset, _ in found] == [0, 1, 6, 7, 8, 10, 11]
        assert (batches[0].start, batches[-1].end) == (0, log.end(0)) == (0, 12)

    def test_the_position_moves_past_what_was_aborted_at_the_end(self) -> None:
        self.append(0, self.lines(2))
        self.transaction(self.lines(3), commit=False)
        reader = self.log().open(0, 0)
        batches = read_all(reader)
        assert [offset for offset, _ in records(batches)] == [0, 1]
        assert batches[-1].end == 6
        self.append(0, self.lines(1))
        assert [offset for offset, _ in records(read_all(reader))] == [6]

    def test_reading_resumes_inside_what_was_aborted(self) -> None:
        self.transaction(self.lines(3, "aborted"), commit=False)
        self.append(0, self.lines(2))
        log = self.log()
        for offset in range(5):
            batches = read_all(log.open(0, offset))
            assert batches[0].start == offset
            assert [line for _, line in records(batches)] == self.lines(2)

    def test_the_end_is_before_a_transaction_that_is_open(self) -> None:
        self.append(0, self.lines(2))
        producer = self.transaction(self.lines(3, "open"), commit=None)
        self.append(0, self.lines(1, "behind"))
        log = self.log()
        reader = log.open(0, 0)
        assert log.end(0) == 2
        assert len(records(read_all(reader))) == 2
        producer.commit_transaction(PATIENCE)
        eventually(lambda: log.end(0) == 7)
        assert [line for _, line in records(read_all(reader))] == self.lines(3, "open") + self.lines(1, "behind")

    @pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
    def test_compressed_records_are_read(self, compression: str) -> None:
        self.produce(self.lines(500), compression=compression)
        log = self.log()
        assert [line for _, line in records(read_all(log.open(0, 0)))] == self.lines(500)
        assert [line for _, line in records(read_all(log.open(0, 321), 7))] == self.lines(500)[321:]

    def test_a_compacted_topic_has_gaps(self) -> None:
        topic = f"{self.topic}-compacted"
        configs = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "100"}
        self.admin.create_topic(topic, 1, configs=configs)
        self.produce(self.lines(50), topic=topic)
        time.sleep(0.2)  # the segment is then old enough to be closed by the next record
        log = self.log(topic=topic)
        found: list[list[tuple[int, bytes]]] = []

        def compacted() -> bool:
            self.produce(self.lines(1, "last"), topic=topic)
            found.append(records(read_all(log.open(0, 0))))
            return len(found[-1]) < 20

        eventually(compacted)
        assert found[-1][-1] == (log.end(0) - 1, self.lines(1, "last")[0])

    def test_a_tombstone_takes_an_offset_and_is_no_record(self) -> None:
        self.produce([b'{"n": 0}', None, b'{"n": 2}', None])
        log = self.log()
        batches = read_all(log.open(0, 0))
        assert records(batches) == [(0, b'{"n": 0}'), (2, b'{"n": 2}')]
        assert batches[-1].end == 4
        only = read_all(log.open(0, 3))
        assert (records(only), only[-1].end) == ([], 4)

    def test_nothing_that_a_value_holds_breaks_the_framing(self) -> None:
        pretty, torn, long = b'{\n "n": 1\r\n}', b'{"n": "a\nb"}', b'{"s": "' + b"x" * MAX_RECORD + b'"}'
        self.produce([b'{"n": 0}', pretty, torn, long, b"", b" ", b"\n", b"\xff{", b"[1]", b'{"n": 9}'])
        (batch,) = read_all(self.log().open(0, 0))
        found = dict(records([batch]))
        assert found[1] == b'{  "n": 1\r }'
        assert {offset: (len(raw), reason.split(";")[0]) for offset, raw, reason in batch.broken} == {
            2: (len(torn), "holds a line break, and is not JSON"),
            3: (RAW_KEPT, "longer than 1048576 bytes"),
            6: (1, "holds a line break, and is not JSON"),
        }
        decoder = Decoder({"n": ColumnType("int"), "at": ColumnType("timestamp")}, timestamp="at")
        events = decoder.decode(batch)
        assert events.dead["offset"].to_list() == list(range(10))  # not one of them has a time
        assert events.dead["reason"].to_list()[1] == "at: missing, and it is the event time"

    # ---- times ------------------------------------------------------------------------------------------------------------------

    def test_arrival_is_the_records_timestamp_in_microseconds(self) -> None:
        times = [1_767_225_600_123_000, 1_767_225_600_999_000, 1_767_225_500_000_000]
        self.admin.produce(self.topic, [(0, None, b"{}", time_us) for time_us in times])
        (batch,) = read_all(self.log().open(0, 0))
        assert batch.arrival is not None
        assert (batch.arrival.tolist(), batch.arrival.dtype) == (times, np.int64)

    def test_offsets_at_a_time(self) -> None:
        self.admin.produce(self.topic, [(0, None, b"{}", second * 1_000_000) for second in (10, 20, 30)])
        self.admin.produce(self.topic, [(1, None, b"{}", 25_000_000)])
        log = self.bare()
        assert log.offsets_at(0) == {0: 0, 1: 0}
        assert log.offsets_at(20_000_000) == {0: 1, 1: 0}
        assert log.offsets_at(20_000_001) == {0: 2, 1: 0}
        assert log.offsets_at(25_000_001) == {0: 2, 1: 1}
        assert log.offsets_at(2**60) == {0: 3, 1: 1} == log.ends()

    # ---- what is gone, or is another --------------------------------------------------------------------------------------------

    def test_an_offset_that_was_deleted_is_truncated(self) -> None:
        self.append(0, self.lines(10))
        log = self.log()
        reader = log.open(0, 8)
        self.admin.delete_records(self.topic, {0: 5})
        assert log.start(0) == 5
        with pytest.raises(LogTruncatedError, match=f"topic {self.topic}, partition 0: offset 4 is gone; the topic now begins at 5"):
            log.open(0, 4)
        with pytest.raises(LogTruncatedError):
            reader.seek(4)
        reader.seek(5)
        assert [offset for offset, _ in records(read_all(reader))] == [5, 6, 7, 8, 9]

    def test_what_is_deleted_under_a_reader_is_noticed(self) -> None:
        for n in range(15):
            self.append(0, [b'{"n": "%d%s"}' % (n, b"x" * 1000)])
        reader = self.bare(settings=SPARING | (SPARING_TOO if self.client == "confluent" else {})).open(0, 0)
        first: list[RecordBatch | None] = []
        eventually(lambda: first.append(reader.read(1)) or any(first))
        self.admin.delete_records(self.topic, {0: 14})
        got = [*filter(None, first), *fails(reader, LogTruncatedError, "is gone; the topic now begins at 14")]
        assert [offset for offset, _ in records(got)] == list(range(reader.position))
        assert reader.position < 14
        with pytest.raises(LogTruncatedError):
            reader.read(10)
        reader.seek(14)
        eventually(lambda: reader.read(10))

    def test_a_topic_that_was_created_again_is_another(self) -> None:
        self.append(0, self.lines(5))
        log = self.bare()
        before = log.topic_id
        reader = log.open(0, 5)
        self.again()
        fails(reader, LogChangedError, f"topic {self.topic} was deleted and created again")
        with pytest.raises(LogChangedError):
            log.open(0, 5)
        with pytest.raises(LogChangedError):
            reader.seek(0)
        with pytest.raises(LogChangedError):
            self.bare(topic_id=before).open(0, 5)
        assert self.bare().topic_id != before

    def test_a_topic_that_was_created_again_is_noticed_where_the_offset_exists(self) -> None:
        self.append(0, self.lines(5))
        reader = self.bare().open(0, 5)
        self.again()
        self.append(0, self.lines(20, "other"))
        fails(reader, LogChangedError, "created again")

    def again(self) -> None:
        self.admin.delete_topic(self.topic)
        eventually(lambda: self.topic not in self.admin.topics())
        self.admin.create_topic(self.topic, 2)

    def test_a_topic_that_is_deleted_is_noticed(self) -> None:
        self.append(0, self.lines(5))
        reader = self.bare().open(0, 5)
        self.admin.delete_topic(self.topic)
        fails(reader, LogError, "there is no topic .*has been deleted since")

    def test_an_offset_beyond_the_end_says_that_the_topic_was_probably_created_again(self) -> None:
        self.append(0, self.lines(5))
        with pytest.raises(LogChangedError, match="partition 0 ends at offset 5, and offset 6 was asked for: it was probably deleted"):
            self.bare().open(0, 6)

    def test_a_missing_topic_is_named_with_those_that_are_like_it_and_is_not_made(self) -> None:
        wrong = self.topic + "x"
        log = self.bare(topic=wrong)
        for ask in (log.partitions, lambda: log.end(0), lambda: log.open(0, 0)):
            with pytest.raises(LogError, match=f"there is no topic '{wrong}' at {self.broker}; there is .*{self.topic}"):
                ask()
        with pytest.raises(LogError, match=wrong):
            KafkaAdmin(self.broker, timeout=1).produce(wrong, [(0, b"k", b"v")])
        assert wrong not in self.admin.topics()

    def test_a_missing_partition_is_named(self) -> None:
        with pytest.raises(LogError, match=f"topic {self.topic} has no partition 2: it has 0 to 1"):
            self.bare().open(2, 0)

    def test_a_negative_offset_is_refused(self) -> None:
        with pytest.raises(ValueError, match="-1"):
            self.bare().open(0, -1)

    def test_partitions_that_are_added_are_seen(self) -> None:
        log = self.bare()
        reader = log.open(0, 0)
        self.admin.grow_topic(self.topic, 3)
        eventually(lambda: log.partitions() == [0, 1, 2])
        assert self.bare().partitions() == [0, 1, 2]
        self.append(2, self.lines(1))
        other = log.open(2, 0)
        eventually(lambda: other.read(10))
        assert reader.read(10) is None

    # ---- brokers, processes -----------------------------------------------------------------------------------------------------

    def test_the_end_is_told_from_what_has_not_come_yet(self) -> None:
        self.append(0, self.lines(3))
        reader = self.bare().open(0, 0)
        assert not reader.at_end
        eventually(lambda: reader.read(10) or reader.at_end)
        eventually(lambda: not reader.read(10) and reader.at_end)
        assert reader.position == 3

    def test_a_log_is_used_by_the_process_that_was_forked(self) -> None:
        self.append(0, self.lines(3))
        log = self.log()
        assert log.end(0) == 3
        ours, theirs = multiprocessing.Pipe()
        child = os.fork()
        if not child:
            found = records(read_all(log.open(0, 0)))
            theirs.send((log.partitions(), found))
            os._exit(0)
        assert ours.poll(PATIENCE)
        partitions, found = ours.recv()
        os.waitpid(child, 0)
        assert (partitions, [line for _, line in found]) == ([0, 1], self.lines(3))
        assert records(read_all(log.open(0, 0))) == found

    def test_without_an_answer_nothing_hangs(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:  # takes connections, and says nothing
            silent = f"127.0.0.1:{listening.getsockname()[1]}"
            begun = time.monotonic()
            with pytest.raises(LogUnavailableError, match=f"no answer from Kafka at {silent}"):
                self.keep(KafkaLog(silent, self.topic, client=self.client, timeout=0.5)).partitions()
            assert time.monotonic() - begun < 10
        with pytest.raises(LogUnavailableError, match=f"no answer from Kafka at {silent}"):  # nobody listens
            self.keep(KafkaLog(silent, self.topic, client=self.client, timeout=0.5)).end(0)

    def test_reading_goes_on_when_the_broker_is_back(self, broker_to_stop: Broker) -> None:
        admin = KafkaAdmin(broker_to_stop.address, timeout=30)
        admin.create_topic(self.topic, 1)
        patient = self.keep(KafkaLog(broker_to_stop.address, self.topic, client=self.client, timeout=60)).open(0, 0)
        hasty = self.keep(KafkaLog(broker_to_stop.address, self.topic, client=self.client, timeout=1.5)).open(0, 0)
        got: list[RecordBatch] = []
        longest = 0.0

        def read() -> int:
            nonlocal longest
            begun = time.perf_counter()
            batch = patient.read(7)
            longest = max(longest, time.perf_counter() - begun)
            if batch is not None:
                got.append(batch)
            return patient.position

        admin.produce(self.topic, [(0, None, line) for line in self.lines(50)])
        eventually(lambda: read() >= 10)
        eventually(lambda: hasty.read(10) or hasty.position == 50)
        broker_to_stop.stop()
        fails(hasty, LogUnavailableError, "no answer from Kafka .* reading goes on when there is one")
        eventually(lambda: read() == 50)
        assert patient.read(7) is None
        assert not hasty.at_end
        broker_to_stop.start()
        admin.produce(self.topic, [(0, None, line) for line in self.lines(50, "after")])
        eventually(lambda: read() == 100)
        assert records(got) == list(enumerate(self.lines(50) + self.lines(50, "after")))

        def hasty_reads() -> bool:
            try:
                hasty.read(1000)
            except LogUnavailableError:
                return False
            return hasty.position == 100

        eventually(hasty_reads)
        assert longest < 1
        admin.close()

    def test_the_password_comes_from_the_environment_and_is_in_no_error(
        self, broker_to_stop: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_admin = KafkaAdmin(broker_to_stop.address)
        open_admin.create_topic(self.topic)
        open_admin.produce(self.topic, [(0, b"key", b"{}")])
        open_admin.close()
        settings = {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN", "sasl.username": USER}
        monkeypatch.setenv("TIDEMILL_KAFKA_PASSWORD", PASSWORD)
        log = self.keep(PatientLog(broker_to_stop.guarded, self.topic, client=self.client, settings=settings))
        assert records(read_all(log.open(0, 0))) == [(0, b"{}")]
        monkeypatch.setenv("TIDEMILL_KAFKA_PASSWORD", "another secret")
        refused = self.keep(KafkaLog(broker_to_stop.guarded, self.topic, client=self.client, settings=settings, timeout=3))
        with pytest.raises(LogError, match="password") as caught:
            refused.partitions()
        assert "secret" not in "".join(traceback.format_exception(caught.value))

    def test_a_broker_is_read_over_tls_and_not_with_the_certificate_of_another_authority(
        self, broker_to_stop: Broker, tmp_path: Path
    ) -> None:
        admin = KafkaAdmin(broker_to_stop.address)
        admin.create_topic(self.topic)
        admin.produce(self.topic, [(0, None, b"{}")])
        admin.close()
        settings = {"security.protocol": "ssl", "ssl.ca.location": str(broker_to_stop.authority)}
        log = self.keep(PatientLog(broker_to_stop.encrypted, self.topic, client=self.client, settings=settings))
        assert records(read_all(log.open(0, 0))) == [(0, b"{}")]
        stranger, _, _ = certificates.make(tmp_path, "stranger")
        settings["ssl.ca.location"] = str(stranger)
        distrustful = self.keep(KafkaLog(broker_to_stop.encrypted, self.topic, client=self.client, settings=settings, timeout=3))
        with pytest.raises(LogError):
            distrustful.partitions()

    def test_a_closed_reader_says_so(self) -> None:
        reader = self.bare().open(0, 0)
        reader.close()
        with pytest.raises(LogError, match="closed"):
            reader.read(1)


class TestConfluentLog(KafkaContract):
    client = "confluent"

    def test_a_setting_that_librdkafka_does_not_know_is_named(self) -> None:
        with pytest.raises(LogError, match=r"no\.such\.setting"):
            self.bare(settings={"no.such.setting": "1"}).open(0, 0)
        assert not any(thread.name == f"watch-{self.topic}" for thread in threading.enumerate())

    def test_it_is_the_client_where_it_is_installed(self) -> None:
        log = self.keep(KafkaLog(self.broker, self.topic))
        assert type(log.open(0, 0)).__name__ == "ConfluentReader"


class TestPythonLog(KafkaContract):
    client = "python"

    def test_a_setting_that_it_does_not_know_is_named(self) -> None:
        with pytest.raises(LogError, match=r"no.such.setting: kafka-python has nothing like it; it takes client.id"):
            self.bare(settings={"no.such.setting": "1"})


def test_producing_tells_where_the_records_lie(kafka_broker: str) -> None:
    admin = KafkaAdmin(kafka_broker)
    admin.create_topic(topic := uuid.uuid4().hex, 3)
    assert admin.produce(topic, [(1, None, b"a"), (2, b"k", b"b"), (1, b"k", None)]) == [(1, 0), (2, 0), (1, 1)]
    (first,), (second,) = admin.produce(topic, [(None, b"k", b"a")]), admin.produce(topic, [(None, b"k", b"b")])
    assert (first.partition, first.offset + 1) == (second.partition, second.offset)
    admin.close()


def test_batches_keep_their_place_whatever_is_in_them() -> None:
    values = [None, b"{}", b"", b'{"a":\n 1}', b"x" * 11]
    batch = record_batch(3, 10, 99, np.array([10, 12, 13, 14, 15]), values, [1, 2, 3, 4, 5], 10)
    assert (batch.partition, batch.start, batch.end, batch.offsets.tolist()) == (3, 10, 99, [12, 13, 14])
    assert (batch.payload, batch.arrival.tolist()) == (b'{}\n\n{"a":  1}\n', [2000, 3000, 4000])
    assert batch.broken == ((15, b"x" * 11, "longer than 10 bytes; the first 65536 are kept"),)
    empty = record_batch(0, 5, 7, np.array([], dtype=np.int64), [], [], 10)
    assert (empty.payload, len(empty.offsets), len(empty.arrival), empty.end) == (b"", 0, 0, 7)


def test_settings_are_translated_for_kafka_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_KAFKA_PASSWORD", "very secret")
    given = {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "ssl.ca.location": "ca.pem",
        "ssl.endpoint.identification.algorithm": "none",
        "fetch.wait.max.ms": "100",
    }
    settings = Settings("a:1, b:2", given, 3.0)
    assert settings.confluent() == {"bootstrap.servers": "a:1, b:2", **given, "sasl.password": "very secret"}
    options = settings.python(reading=True, strict=True)
    assert (
        options.items()
        >= {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": "me",
            "sasl_plain_password": "very secret",
            "ssl_cafile": "ca.pem",
            "ssl_check_hostname": False,
            "fetch_max_wait_ms": 100,
            "request_timeout_ms": 3000,
        }.items()
    )
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert "fetch_max_wait_ms" not in settings.python(reading=False, strict=True)
    assert "very secret" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sasl.password": "p"}, "TIDEMILL_KAFKA_PASSWORD"),
        ({"isolation.level": "read_uncommitted"}, "isolation.level: tidemill sets it itself"),
        ({"fetch.min.bytes": "many"}, "expected a whole number, not 'many'"),
        ({"ssl.engine.id": "x"}, "ssl.engine.id: kafka-python has nothing like it"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, str], reason: str) -> None:
    with pytest.raises(LogError, match=reason):
        KafkaLog("localhost:1", "t", client="python", settings=given)


def test_brokers_and_client_must_be_named() -> None:
    with pytest.raises(LogError, match="no Kafka brokers are named"):
        KafkaLog(" ", "t")
    with pytest.raises(LogError, match="'java' is not known"):
        KafkaLog("localhost:1", "t", client="java")
