"""JSON lines: one object a line. A blank line takes an offset, but is no event."""

from __future__ import annotations

import numpy as np

from tidemill.logs.base import RecordBatch
from tidemill.logs.cursor import Marks, Place, Rows, TextCursor
from tidemill.logs.records import Block, Int64s, keep


class JsonLinesCursor(TextCursor):
    """Hands out lines as they are; whether they hold JSON is for the decoder to say."""

    def __init__(self, place: Place, marks: Marks, chunk: int, ordinal: int) -> None:
        super().__init__(place, marks, chunk, ordinal, quoted=False, header=0)

    def read(self, max_records: int) -> RecordBatch | None:
        return self.batch(self.take(max_records), _lines)


def _lines(block: Block) -> Rows:
    blank = blank_records(block)
    numbers = np.arange(len(block), dtype=np.int64)
    if not len(blank):
        return block.payload(), numbers, ()
    wanted = np.ones(len(block), dtype=np.bool_)
    wanted[blank] = False
    return keep(block, wanted), numbers[wanted], ()


def blank_records(block: Block) -> Int64s:
    """The numbers of the records that hold nothing but spaces, tabs and carriage returns."""
    starts = block.starts
    first = np.frombuffer(block.data, dtype=np.uint8)[starts]
    suspects = np.flatnonzero((first == 10) | (first == 13) | (first == 32) | (first == 9))
    return np.array([i for i in suspects.tolist() if not block.data[starts[i] : block.ends[i]].strip(b" \t\r\n")], dtype=np.int64)
