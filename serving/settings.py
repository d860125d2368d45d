"""What a service is told when it is started."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Settings(Struct, frozen=True):
    """Of one service; workers get it as JSON on their command line, so it holds no secrets. Sizes in bytes, times in seconds.

    `threads`: how many requests a worker computes at once; `queue`: how many more may wait for that, before others are turned away.
    `patience`: for how long a body may take to arrive. `grace`: for how long requests may go on after SIGTERM. `models`: those that must
    be loaded before the service is ready. `keys_file`: one API key per line; see `serving.keys`.
    """

    directory: str
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    max_body: int = 1 << 20
    max_rows: int = 1000
    threads: int = 2
    queue: int = 64
    patience: float = 10.0
    grace: float = 10.0
    keep_alive: int = 75
    models: tuple[str, ...] = ()
    keys_file: str | None = None
    log_format: Literal["text", "json"] = "text"
