"""The peer of `stream` and `kafka`: one sum and one count over windows of an hour, as Bytewax's own documentation writes it.

`python -m benchmarks.window_flow FILE` runs it over a file of JSON lines. It keeps nothing and writes nothing: no archive, no store,
no other window. That is to its advantage. With `--tuned` its clock is told that events are of the past, which the documentation does not
show: by default each open window is looked at again with every batch, which is slower, the more so the more keys there are.

`python -m benchmarks.window_flow --kafka BROKERS/TOPIC --redis PORT --events N ADDRESSES INDEX` runs it from a topic into Redis, as one
process of a cluster: a window is written when it closes.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax._bytewax import cluster_main
from bytewax.connectors.files import FileSource
from bytewax.dataflow import Dataflow
from bytewax.inputs import StatefulSourcePartition
from bytewax.operators.windowing import EventClock, TumblingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main


class _Nothing(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


class _Nowhere(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Nothing:
        return _Nothing()


def _at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["at"])


def _add(state: tuple[int, float], event: dict[str, Any]) -> tuple[int, float]:
    return state[0] + 1, state[1] + event["amount"]


def _merge(one: tuple[int, float], other: tuple[int, float]) -> tuple[int, float]:
    return one[0] + other[0], one[1] + other[1]


class _Redis(StatelessSinkPartition[Any]):
    """A pipeline per batch."""

    def __init__(self, port: int) -> None:
        import redis

        self._client = redis.Redis(port=port)

    def write_batch(self, items: list[Any]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for user, (window, (count, total)) in items:
                pipe.set(f"bytewax:{user}:{window}", json.dumps({"count": count, "sum": total}))
            pipe.execute()


class _ToRedis(DynamicSink[Any]):
    def __init__(self, port: int) -> None:
        self._port = port

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Redis:
        return _Redis(self._port)


class _Bounded(StatefulSourcePartition[Any, Any]):
    """The first so many messages of a partition."""

    def __init__(self, inner: StatefulSourcePartition[Any, Any], limit: int) -> None:
        self._inner, self._left = inner, limit

    def next_batch(self) -> Any:
        if self._left <= 0:
            raise StopIteration
        messages = list(self._inner.next_batch())[: self._left]
        self._left -= len(messages)
        return messages

    def snapshot(self) -> Any:
        return None


def _topic(brokers: str, topic: str, events: int) -> Any:
    from bytewax.connectors.kafka import KafkaSource

    class Source(KafkaSource):  # type: ignore[misc]
        def build_part(self, step_id: str, for_part: str, resume_state: Any) -> Any:
            return _Bounded(super().build_part(step_id, for_part, resume_state), events // len(self.list_parts()))

    return Source([brokers], [topic], tail=False, batch_size=10_000)


def flow(source: Any, decode: Any, sink: Any, *, tuned: bool) -> Dataflow:
    """Count and sum of `amount` of each user, for each hour."""
    more: dict[str, Any] = {"to_system_utc": lambda _: None} if tuned else {}
    dataflow = Dataflow("windows")
    lines = op.input("lines", dataflow, source)
    events = op.map("decode", lines, decode)
    keyed = op.key_on("user", events, lambda event: event["user"])
    windows = fold_window(
        "hourly",
        keyed,
        EventClock(_at, wait_for_system_duration=timedelta(0), **more),
        TumblingWindower(length=timedelta(hours=1), align_to=datetime(2020, 1, 1, tzinfo=UTC)),
        lambda: (0, 0.0),
        _add,
        _merge,
    )
    op.output("out", windows.down, sink)
    return dataflow


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--kafka", help="BROKERS/TOPIC")
    parser.add_argument("--redis", type=int, help="a port of loopback")
    parser.add_argument("--events", type=int)
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    if given.kafka is None:
        run_main(flow(FileSource(Path(given.arguments[0])), json.loads, _Nowhere(), tuned=given.tuned))
        return
    brokers, _, topic = given.kafka.partition("/")
    dataflow = flow(
        _topic(brokers, topic, given.events), lambda message: json.loads(message.value), _ToRedis(given.redis), tuned=given.tuned
    )
    addresses, index = given.arguments
    cluster_main(dataflow, addresses.split(","), int(index))


if __name__ == "__main__":
    main()
