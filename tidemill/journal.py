"""The log of a command's processes: one line per message, with named fields, as text for people or JSON for machines.

A line is given to a function as a whole, so that lines of several threads and processes do not mix.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

LogFormat = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class Journal:
    """The lines of one process from `level` up; `who` says which. `write` gets each line, without a newline; `now` UTC seconds.

    A line of JSON is an object with `time`, `level`, `who` and `message`, and then the fields; one without a value is null.

    >>> journal = Journal("worker 0", print, now=lambda: 0.0)
    >>> journal.info("reading", lag=12, state="all right")
    1970-01-01T00:00:00.000Z info    worker 0 · reading: lag=12 state="all right"
    >>> Journal("worker 0", print, log_format="json", now=lambda: 0.0).info("reading", lag=12)
    {"time": "1970-01-01T00:00:00.000Z", "level": "info", "who": "worker 0", "message": "reading", "lag": 12}
    """

    who: str
    write: Callable[[str], object]
    level: str = "info"
    log_format: LogFormat = "text"
    now: Callable[[], float] = time.time

    def debug(self, message: str, **fields: object) -> None:
        """What helps whoever looks for a mistake."""
        self._line("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        """What happened as it should."""
        self._line("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """What went wrong, and is being dealt with."""
        self._line("warning", message, fields)

    def error(self, message: str, error: BaseException | None = None, **fields: object) -> None:
        """What ends the process. The traceback of `error` comes first, and at level debug only."""
        if error is not None:
            self._line("debug", "traceback", {"of": "".join(traceback.format_exception(error))})
        self._line("error", message, fields)

    def _line(self, level: str, message: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        moment = dt.datetime.fromtimestamp(self.now(), dt.UTC)
        at = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
        if self.log_format == "json":
            head = {"time": at, "level": level, "who": self.who, "message": message}
            line = head | {name: _finite(value) for name, value in fields.items() if name not in head}
            self.write(json.dumps(line, ensure_ascii=False, default=str))
            return
        told = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        self.write(f"{at} {level:7} {self.who} · {message}{': ' * bool(told)}{told}")


def is_line(text: str) -> bool:
    """Whether a text is a line of a journal in JSON.

    >>> is_line('{"time": "1970-01-01T00:00:00.000Z", "level": "info", "who": "worker 0", "message": "stopped"}'), is_line("Killed")
    (True, False)
    """
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and {"time", "level", "message"} <= found.keys()


def _finite(value: object) -> object:
    """A value that JSON has: NaN and the infinities it has not."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> str:
    """A value in a line of text: quoted where a space would make two of it, but for whole texts, which keep their lines."""
    text = "unknown" if value is None else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or (any(c in text for c in ' "=') and "\n" not in text) else text
