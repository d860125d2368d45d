"""The peer of `kafka`: one sum and one count over windows of an hour in Quix Streams, from a topic into Redis.

Runs in an environment of its own, which `benchmarks.kafka` makes; several processes share the topic's partitions as a consumer group.
Without changelog topics, which would cost it more. `current` writes each window whenever it changes, so that a request sees the last
event; `final` only when it closes.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows import Count, Sum
from quixstreams.sinks.community.redis import RedisSink


def _at(value: Any, *_: Any) -> int:
    return int(datetime.fromisoformat(value["at"]).timestamp() * 1000)


def main() -> None:
    """Run until so many events are processed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers")
    parser.add_argument("--topic")
    parser.add_argument("--group")
    parser.add_argument("--redis", type=int)
    parser.add_argument("--events", type=int)
    parser.add_argument("--state")
    parser.add_argument("--emit", choices=("current", "final"))
    given = parser.parse_args()
    app = Application(
        broker_address=given.brokers,
        consumer_group=given.group,
        auto_offset_reset="earliest",
        state_dir=given.state,
        use_changelog_topics=False,
        commit_interval=1.0,
        loglevel="WARNING",
    )
    events = app.topic(given.topic, value_deserializer="json", key_deserializer="str", timestamp_extractor=_at)
    windows = app.dataframe(events).tumbling_window(timedelta(hours=1)).agg(count=Count(), amount=Sum("amount"))
    updates = windows.current() if given.emit == "current" else windows.final()
    updates.sink(RedisSink("127.0.0.1", given.redis, 0, key_serializer=lambda key, value: f"quix:{key}:{value['start']}"))
    app.run(count=given.events)


if __name__ == "__main__":
    main()
