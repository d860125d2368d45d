"""A load on an HTTP server over keep-alive connections, from a process of its own; it knows as little of HTTP as it can, to be cheap.

`python -m benchmarks.load URL BODIES --rate 500 --seconds 10 --connections 16`: an open loop; requests begin at instants that are drawn
beforehand (Poisson), whatever the server does, and each is timed from its instant on, so that time spent in a queue counts.
`--rate 0`: a closed loop; every connection asks again as soon as it is answered. BODIES: a file with one body per line, taken in turns.
Prints one JSON document: requests, seconds, errors, and p50, p90, p99 and the largest in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import selectors
import time
from pathlib import Path
from urllib.parse import urlsplit


class Connection:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self._where = host, port
        self._reader: asyncio.StreamReader | None = None

    async def ask(self, request: bytes) -> int:
        """The status; the answer is read to its end."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(*self._where)
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        at = head.index(b"content-length:") + 15
        await self._reader.readexactly(int(head[at : head.index(b"\r", at)]))
        return int(head[9:12])


async def run(url: str, bodies: list[bytes], rate: float, seconds: float, connections: int) -> dict[str, float]:
    """Apply the load; the figures."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 80
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: "
    requests = [head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body for body in bodies]
    free: asyncio.Queue[Connection] = asyncio.Queue()  # in turns: many callers, not one that holds on to its last connection
    for _ in range(connections):
        connection = Connection(host, port)
        await connection.ask(requests[0])  # connected, and warm
        free.put_nowait(connection)
    taken: list[float] = []
    errors = 0

    async def one(request: bytes, begun: float) -> None:
        nonlocal errors
        connection = await free.get()
        errors += await connection.ask(request) != 200
        taken.append(time.perf_counter() - begun)
        free.put_nowait(connection)

    async def closed(number: int) -> None:
        count = number
        while (now := time.perf_counter()) < end:
            await one(requests[count % len(requests)], now)
            count += connections

    gc.disable()
    begin = time.perf_counter()
    end = begin + seconds
    if rate:
        rng, at, tasks = random.Random(7), begin, []
        while (at := at + rng.expovariate(rate)) < end:
            tasks.append(at)
        under_way = []
        for count, at in enumerate(tasks):
            if (wait := at - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            under_way.append(asyncio.create_task(one(requests[count % len(requests)], at)))
        await asyncio.gather(*under_way)
    else:
        await asyncio.gather(*(closed(number) for number in range(connections)))
    took = time.perf_counter() - begin
    taken.sort()
    at = {name: 1e3 * taken[min(int(share * len(taken)), len(taken) - 1)] for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {"requests": len(taken), "seconds": took, "errors": errors, **at, "max": 1e3 * taken[-1]}


def main() -> None:
    """Read the arguments, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    bodies = given.bodies.read_bytes().splitlines()
    # epoll waits for whole milliseconds, rounded up, and every request would begin so much late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        print(json.dumps(runner.run(run(given.url, bodies, given.rate, given.seconds, given.connections))))


if __name__ == "__main__":
    main()
