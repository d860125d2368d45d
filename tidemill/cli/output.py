"""How the command line prints: aligned tables and short lines for people, one JSON document for scripts, progress on stderr."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: A pipe has no width: nothing is cut or wrapped there.
_ENDLESS = 10_000
#: What is done sooner needs no progress bar.
_PATIENCE = 2.0


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=None if stream.isatty() else _ENDLESS)


class Output:
    """Where one command prints. With `json`, only `document` does."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._console = _console(stderr=False)

    @property
    def width(self) -> int:
        """Columns of the terminal; 100 where there is none."""
        return 100 if self._console.width == _ENDLESS else self._console.width

    def say(self, text: str | Text = "", style: str = "") -> None:
        """One line."""
        if not self.json:
            self._console.print(text, style=style, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that stands out; long ones wrap, with their lines under one another."""
        if not self.json:
            grid = Table.grid(padding=(0, 1))
            grid.add_row(Text("warning:", style="yellow"), Text(text))
            self._console.print(grid)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: Sequence[str] = (), title: str = "") -> None:
        """A table; `numbers` are columns to align on the right. A cell is text, or `Text` with a style; None is left empty."""
        if self.json or not rows:
            return
        if title:
            self._console.print(title, style="bold", soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", padding=(0, 1))
        for column in columns:
            table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True, overflow="ellipsis")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row))
        self._console.print(table)

    def document(self, value: object) -> None:
        """The JSON document, where one was asked for."""
        if self.json:
            try:
                text = json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
            except ValueError:  # JSON has no NaN and no infinity
                text = json.dumps(_finite(value), ensure_ascii=False, default=_plain, allow_nan=False)
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


def _finite(value: object) -> object:
    """The same with null for what is no finite number, as in answers over HTTP."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_finite(item) for item in value]
        case dict():
            return {key: _finite(item) for key, item in value.items()}
    return value


def _plain(value: object) -> object:
    """What JSON does not know: instants are ISO 8601."""
    if isinstance(value, dt.datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class Progress:
    """A progress bar on stderr that appears when work takes longer than two seconds, and only in a terminal.

    Call it as the library's jobs do: (what is under way, done, of how many). As a context manager it is gone at the end. With `rate` it
    also says how many a second, and how long it will take.
    """

    def __init__(self, *, rate: bool = False) -> None:
        self._begun = time.monotonic()
        self._rate = rate
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._begun < _PATIENCE or not sys.stderr.isatty():
                return
            self._bar = _bar(rate=self._rate)
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)


def _bar(*, rate: bool) -> Any:
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "")

    more = (Rate(), TextColumn("left"), TimeRemainingColumn(compact=True)) if rate else ()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeElapsedColumn(),
    )
    return Bar(*columns, *more, console=_console(stderr=True), transient=True)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on stderr for work that tells no progress; it appears after two seconds, and only in a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    status = _console(stderr=True).status(what)
    timer = threading.Timer(_PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


class Live:
    """Lines on stderr, and in a terminal a last one that keeps changing below them."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._status: Any = self._console.status("") if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def line(self, text: str) -> None:
        """Print a line; from any thread."""
        self._console.print(Text(text), soft_wrap=True)

    def show(self, text: str) -> None:
        """Change the last line."""
        if self._status is not None:
            self._status.update(Text(text))
