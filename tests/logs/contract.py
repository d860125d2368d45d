"""What every log reader must do. A reader's test is a subclass that says how to write records and how to open the log."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from itertools import pairwise

import pytest

from tidemill.logs.base import Log, PartitionReader, RecordBatch


def read_all(reader: PartitionReader, max_records: int = 1000) -> list[RecordBatch]:
    """Everything that is there now."""
    batches = []
    while (batch := reader.read(max_records)) is not None:
        batches.append(batch)
    return batches


def records(batches: list[RecordBatch]) -> list[tuple[int, bytes]]:
    """Offset and bytes of each record; checks what a batch promises of itself."""
    found: list[tuple[int, bytes]] = []
    for batch in batches:
        assert isinstance(batch.payload, bytes)
        lines = batch.payload.split(b"\n")
        assert lines.pop() == b""
        assert len(lines) == len(batch.offsets)
        assert all(batch.start <= offset < batch.end for offset in batch.offsets)
        assert list(batch.offsets) == sorted(set(batch.offsets.tolist()))
        assert batch.arrival is None or len(batch.arrival) == len(lines)
        found += zip(batch.offsets.tolist(), lines, strict=True)
    for before, after in pairwise(batches):
        assert before.end == after.start
    return found


class LogContract(ABC):
    """Subclass as `TestX(LogContract)`. Offsets need not begin at 0 or be without gaps."""

    @pytest.fixture(autouse=True)
    @abstractmethod
    def prepare(self) -> None:
        """Make an empty log of partitions 0 and 1."""

    @abstractmethod
    def append(self, partition: int, lines: list[bytes]) -> None:
        """Add records at the end of a partition."""

    @abstractmethod
    def log(self) -> Log:
        """The log as a new process sees it."""

    def lines(self, count: int, tag: str = "x") -> list[bytes]:
        return [json.dumps({"n": n, "tag": tag}).encode() for n in range(count)]

    def test_records_come_back_in_order_under_ascending_offsets(self) -> None:
        self.append(0, self.lines(25))
        log = self.log()
        found = records(read_all(log.open(0, log.start(0))))
        assert [line for _, line in found] == self.lines(25)
        assert log.end(0) > found[-1][0]

    def test_a_batch_has_no_more_records_than_asked_for(self) -> None:
        self.append(0, self.lines(25))
        log = self.log()
        batches = read_all(log.open(0, log.start(0)), 7)
        assert max(len(batch.offsets) for batch in batches) <= 7
        assert [line for _, line in records(batches)] == self.lines(25)

    def test_an_offset_names_the_same_record_in_every_process(self) -> None:
        self.append(0, self.lines(25))
        first = self.log()
        found = records(read_all(first.open(0, first.start(0))))
        self.append(0, self.lines(5, "later"))
        again = self.log()
        assert records(read_all(again.open(0, again.start(0))))[:25] == found

    def test_reading_resumes_at_any_offset(self) -> None:
        self.append(0, self.lines(25))
        log = self.log()
        found = records(read_all(log.open(0, log.start(0))))
        for at, (offset, _) in enumerate(found):
            assert records(read_all(log.open(0, offset), 10)) == found[at:]

    def test_the_end_of_a_batch_is_where_the_next_one_begins(self) -> None:
        self.append(0, self.lines(25))
        log = self.log()
        whole = records(read_all(log.open(0, log.start(0))))
        first = log.open(0, log.start(0)).read(10)
        assert first is not None
        assert records([first]) + records(read_all(log.open(0, first.end))) == whole

    def test_a_reader_at_the_end_has_nothing_and_goes_on_when_something_comes(self) -> None:
        self.append(0, self.lines(3))
        log = self.log()
        reader = log.open(0, log.start(0))
        read_all(reader)
        assert reader.read(10) is None
        assert reader.read(10) is None
        self.append(0, self.lines(2, "later"))
        assert [line for _, line in records(read_all(reader))] == self.lines(2, "later")

    def test_a_reader_opened_at_the_end_waits_for_what_comes(self) -> None:
        self.append(0, self.lines(3))
        log = self.log()
        reader = log.open(0, log.end(0))
        assert reader.read(10) is None
        self.append(0, self.lines(2, "later"))
        assert [line for _, line in records(read_all(reader))] == self.lines(2, "later")

    def test_a_reader_can_be_sent_back_and_forth(self) -> None:
        self.append(0, self.lines(25))
        log = self.log()
        reader = log.open(0, log.start(0))
        found = records(read_all(reader))
        for at in (20, 3, 24, 0):
            reader.seek(found[at][0])
            assert records(read_all(reader, 4)) == found[at:]

    def test_two_readers_do_not_disturb_each_other(self) -> None:
        self.append(0, self.lines(10))
        log = self.log()
        one, other = log.open(0, log.start(0)), log.open(0, log.start(0))
        batches: tuple[list[RecordBatch], list[RecordBatch]] = ([], [])
        for _ in range(10):
            for reader, got in zip((one, other), batches, strict=True):
                batch = reader.read(1)
                assert batch is not None
                got.append(batch)
        assert records(batches[0]) == records(batches[1])

    def test_partitions_are_logs_of_their_own(self) -> None:
        self.append(1, self.lines(4, "one"))
        self.append(0, self.lines(3, "zero"))
        log = self.log()
        assert log.partitions() == [0, 1]
        assert [line for _, line in records(read_all(log.open(0, log.start(0))))] == self.lines(3, "zero")
        assert [line for _, line in records(read_all(log.open(1, log.start(1))))] == self.lines(4, "one")

    def test_a_closed_reader_can_be_closed_again(self) -> None:
        self.append(0, self.lines(1))
        log = self.log()
        reader = log.open(0, log.start(0))
        read_all(reader)
        reader.close()
        reader.close()
        assert records(read_all(log.open(0, log.start(0)))), "closing twice harms nobody else"
