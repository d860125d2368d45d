"""Log lines: whole, and the same fields in text and in JSON."""

from __future__ import annotations

import json
from typing import Any

from tidemill import journal


def written(**options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return journal.Journal("worker 3", lines.append, now=lambda: 1_772_366_400.5, **options), lines


def test_a_line_of_text_has_time_level_who_message_and_fields() -> None:
    log, lines = written()
    log.info("reading", lag=12, where="two words", empty="")
    assert lines == ['2026-03-01T12:00:00.500Z info    worker 3 · reading: lag=12 where="two words" empty=""']


def test_a_line_of_json_has_the_same() -> None:
    log, lines = written(log_format="json")
    log.warning("Zürich", lag=12)
    expected = {"time": "2026-03-01T12:00:00.500Z", "level": "warning", "who": "worker 3", "message": "Zürich", "lag": 12}
    assert [json.loads(line) for line in lines] == [expected]


def test_what_is_below_the_level_is_not_written() -> None:
    log, lines = written(level="warning")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [line.rpartition("· ")[2] for line in lines] == ["c", "d"]


def test_a_traceback_is_written_at_level_debug_only_and_the_sentence_comes_last() -> None:
    for level, count in (("info", 1), ("debug", 2)):
        log, lines = written(level=level)
        log.error("it broke", error=ValueError("boom"))
        assert len(lines) == count
        assert lines[-1].endswith("error   worker 3 · it broke")
    assert "ValueError: boom" in lines[0]


def strictly(text: str) -> Any:
    """As a reader that knows nothing but JSON takes it."""

    def unknown(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=unknown)


def test_whatever_is_in_a_field_a_line_of_json_is_one_line_of_json() -> None:
    log, lines = written(log_format="json")
    log.info("two\nlines\r\x1b[31m \u2028", rate=float("nan"), most=float("inf"), none=None, path="/a\udcff", where=journal.Journal)
    (line,) = lines
    assert "\n" not in line
    assert "\r" not in line
    found = strictly(line.encode(errors="backslashreplace").decode())
    assert found["message"] == "two\nlines\r\x1b[31m \u2028"
    assert (found["rate"], found["most"], found["none"], found["path"]) == ("nan", "inf", None, "/a\udcff")


def test_a_field_does_not_take_the_place_of_what_every_line_has() -> None:
    log, lines = written(log_format="json")
    log.info("reading", time="yesterday", who="me", lag=1)
    assert strictly(lines[0]) == {"time": "2026-03-01T12:00:00.500Z", "level": "info", "who": "worker 3", "message": "reading", "lag": 1}


def test_what_is_not_known_is_null_in_json_and_said_in_text() -> None:
    for log_format, expected in (("json", '"lag": null}'), ("text", "lag=unknown")):
        log, lines = written(log_format=log_format)
        log.info("reading", lag=None)
        assert lines[0].endswith(expected)
