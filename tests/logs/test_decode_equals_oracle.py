"""The decoder, which reads columns, equals the oracle, which reads lines; and batches do not matter."""

from __future__ import annotations

import json
import struct

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.logs.oracle import Oracle, as_oracle, iso
from tidemill.logs import json_columns
from tidemill.logs.base import RecordBatch
from tidemill.logs.decode import Decoder
from tidemill.logs.instants import parse_iso
from tidemill.types import ColumnType

SCHEMA = {
    "i": ColumnType("int"),
    "f": ColumnType("float"),
    "s": ColumnType("str"),
    "é": ColumnType("str"),
    "b": ColumnType("bool"),
    "at": ColumnType("timestamp"),
    "known": ColumnType("timestamp", "ms"),
}

digits = st.sampled_from("0123456789")
times = st.datetimes().map(lambda t: t.isoformat())
zones = st.sampled_from(["", "Z", "z", "+02", "-0530", "+23:59", "-00:00", "+24:00", " Z", "+1:00"])
fractions = st.one_of(st.just(""), st.text(digits, min_size=1, max_size=12).map(lambda d: "." + d))
moments = st.one_of(
    st.tuples(st.datetimes().map(lambda t: t.isoformat(timespec="seconds")), fractions, zones).map("".join),
    st.tuples(times, zones).map("".join),
    st.sampled_from(["2024-02-30", "2024-02-29", "2023-02-29T00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:60Z", "0000-01-01"]),
    st.sampled_from(["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.9999999-00:01", "2024-01-01x00:00:00", "20240101"]),
    st.sampled_from(["soon", "", "２024-01-01", "1234567890"]),
)
numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(repr).map(lambda x: x.replace("nan", "NaN").replace("inf", "Infinity")),
    st.sampled_from(["-0", "-0.0", "1e400", "-1e400", "1e-400", "01", "1.", "1" + "0" * 50, "9223372036854775808", "1e2", "1.0"]),
)
texts = st.one_of(
    st.text(max_size=6).filter(lambda t: "\ud800" not in t),
    st.sampled_from(["5", "-", "[x", "true", "false", "{}", "tail", 'a"s":5', "\\", '"s":1']),
)
literals = st.one_of(
    numbers,
    st.sampled_from(["true", "false", "null", "True", "[1]", '{"s": 5}', "[", "nul"]),
    st.sampled_from([r'"\ud800"', r'"\ud83d\ude00"', r'"\\ud83d\ude00"', r'"\udc00x"', r'"\x"', '"\t"']),
    texts.map(json.dumps),
    texts.map(lambda t: json.dumps(t, ensure_ascii=False)),
    moments.map(json.dumps),
)
keys = st.sampled_from(["i", "f", "s", "é", "b", "at", "known", "other", "n"]).flatmap(
    lambda k: st.sampled_from([json.dumps(k), json.dumps(k, ensure_ascii=False), '"' + "".join(f"\\u{ord(c):04X}" for c in k) + '"'])
)
ordinary = st.fixed_dictionaries(
    {"at": st.datetimes().map(lambda t: t.isoformat() + "Z")},
    optional={
        "i": st.integers(-(2**63), 2**63 - 1),
        "f": st.one_of(st.floats(-1e6, 1e6), st.integers(-10, 10)),
        "s": texts,
        "é": texts,
        "b": st.booleans(),
        "known": st.integers(-(10**13), 10**13),
        "other": st.one_of(st.none(), st.text(max_size=4), st.lists(st.integers(), max_size=2)),
    },
).map(json.dumps)
spoilt = st.lists(st.tuples(keys, literals), max_size=4).map(lambda pairs: "{" + ", ".join(f"{k}: {v}" for k, v in pairs) + "}")
with_time = st.tuples(keys, literals).map(lambda kv: f'{{"at": "2024-01-01T00:00:00Z", {kv[0]}: {kv[1]}}}')
garbage = st.one_of(
    st.sampled_from(["", " ", "{", "[]", "5", "null", "\ufeff{}", '{"o": NaN}', "\x00"]),
    st.sampled_from(['{"i": 1', '{"i": 1}}', '{"i":1}{"i":2}', "{'i': 1}", '{"i":1,}']),
    st.text(max_size=8),
)
line = st.one_of(
    ordinary.map(str.encode),
    ordinary.map(str.encode),
    with_time.map(lambda t: t.encode(errors="replace")),
    spoilt.map(lambda t: t.encode(errors="replace")),
    garbage.map(lambda t: t.encode(errors="replace")),
    st.binary(max_size=8),
    ordinary.map(lambda t: t.encode().replace(b"a", b"\xff")),
).map(lambda b: b.replace(b"\n", b" "))


def decode(lines: list[bytes], decoder: Decoder, first: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    payload = b"".join(one + b"\n" for one in lines)
    offsets = np.arange(first, first + len(lines), dtype=np.int64)
    events = decoder.decode(RecordBatch(0, first, first + len(lines), offsets, payload))
    return events.frame, events.dead


def check(lines: list[bytes], max_ahead: int | None) -> None:
    decoder = Decoder(SCHEMA, timestamp="at", arrival="known", max_ahead=max_ahead)
    frame, dead = decode(lines, decoder)
    oracle = Oracle(SCHEMA, "at", "known", max_ahead)
    expected = [oracle.decode(one) for one in lines]
    good = [n for n, found in enumerate(expected) if not isinstance(found, str)]
    assert frame["_offset"].to_list() == good
    for got, number in zip(as_oracle(frame), good, strict=True):
        assert _exact(got) == _exact(expected[number]), lines[number]
    bad = [(n, found) for n, found in enumerate(expected) if isinstance(found, str)]
    assert dead["offset"].to_list() == [n for n, _ in bad]
    for (number, reason), got, raw in zip(bad, dead["reason"], dead["raw"], strict=True):
        assert got.startswith(reason), lines[number]
        assert raw == lines[number]


def _exact(event: object) -> object:
    """Floats by their bits: -0.0 is not 0.0 here."""
    assert isinstance(event, dict)
    return {k: struct.pack("<d", v) if isinstance(v, float) else v for k, v in event.items()}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a handful of lines takes the ways of thousands."""
    monkeypatch.setattr(json_columns, "_FEW", 0)
    monkeypatch.setattr(json_columns, "_LEAF", 2)


@settings(max_examples=200)
@given(st.lists(line, min_size=1, max_size=12), st.sampled_from([None, 0, 10**15]))
@example([b'{"at": "2024-01-01", "s": 5}', b'{"at": "2024-01-01", "\\u0073": 5}', b'{"at": "2024-01-01", "s": "5"}'], None)
@example([b'{"at": "2024-01-01", "\\u00E9": 5}', b'{"at": "2024-01-01", "o": "\\ud800"}'], None)
@example([b'{"at": "2024-01-01", "f": -0.0, "known": 1.5}', b'{"at": "2024-01-01", "known": 9007199254740993}'], None)
def test_the_decoder_says_what_the_oracle_says(lines: list[bytes], max_ahead: int | None) -> None:
    check(lines, max_ahead)


@settings(max_examples=60)
@given(st.lists(st.one_of(ordinary.map(str.encode), line), min_size=2, max_size=10), st.data())
def test_how_lines_are_batched_changes_nothing(lines: list[bytes], data: st.DataObject) -> None:
    decoder = Decoder(SCHEMA, timestamp="at", arrival="known", max_ahead=0)
    frame, dead = decode(lines, decoder)
    cut = data.draw(st.integers(1, len(lines) - 1))
    parts = [decode(lines[:cut], decoder), decode(lines[cut:], decoder, cut)]
    assert frame.equals(pl.concat([part[0] for part in parts]))
    assert dead.equals(pl.concat([part[1] for part in parts]))


@settings(max_examples=200)
@given(st.lists(st.one_of(moments, st.none(), st.text(max_size=30)), max_size=12))
def test_iso_texts_are_read_as_python_reads_them(texts: list[str | None]) -> None:
    texts = [t if t is None else t.encode(errors="replace").decode() for t in texts]
    assert parse_iso(pl.Series(texts, dtype=pl.String)).to_list() == [None if t is None else iso(t) for t in texts]


def test_deep_nesting_is_read_or_refused_alike_however_it_is_batched() -> None:
    decoder = Decoder(SCHEMA, timestamp="at")
    depths, extras = (10, 399, 500, 1000, 1100, 100_000), (b"", b', "f": NaN')
    lines = [b'{"at": "2024-01-01", "o": ' + b"[" * d + b"]" * d + extra + b"}" for d in depths for extra in extras]
    together, dead = decode(lines, decoder)
    assert together["_offset"].to_list() == [0, 1, 2, 3, 4, 6]
    alone = [decode([one], decoder, n) for n, one in enumerate(lines)]
    assert together.equals(pl.concat([frame for frame, _ in alone]))
    assert dead.equals(pl.concat([letters for _, letters in alone]))


def test_one_bad_line_in_many_is_found_and_the_others_keep_their_order() -> None:
    decoder = Decoder(SCHEMA, timestamp="at")
    lines = [b'{"at": "2024-01-01", "i": %d, "s": "x"}' % n for n in range(300)]
    lines[7], lines[150], lines[299] = b'{"i": "1"}', b'{"at": "2024-01-01", "s": 5}', b'{"a":1, "a" 2}'
    frame, dead = decode(lines, decoder)
    assert frame["i"].to_list() == [n for n in range(300) if n not in (7, 150, 299)]
    assert dead["reason"].to_list() == ["i: not an int", "s: not a str", "not JSON"]


@pytest.mark.parametrize("digits", [39, 40, 41, 45, 5000])
def test_integers_of_any_length_are_read_or_refused_with_their_reason(digits: int) -> None:
    decoder = Decoder(SCHEMA, timestamp="at")
    number = b"9" * digits
    lines = [b'{"at": "2024-01-01", "%s": -%s}' % (name, number) for name in (b"i", b"f", b"s", b"other", b"known")]
    frame, dead = decode(lines, decoder)
    assert frame["_offset"].to_list() == [3]
    assert [reason[:10] for reason in dead["reason"]] == ["i: outside", "f: 2**64 o", "s: not a s", "known: out"]
