"""A topic by the same name may be another one: what was read is confirmed before it is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tidemill.errors import LogChangedError, LogUnavailableError
from tidemill.logs.kafka.admin import MissingTopicError, Topic
from tidemill.logs.kafka.watch import TopicWatch

OLD, NEW = (Topic("orders", id, (0, 1), frozenset()) for id in ("a", "b"))


class Admin:
    """Says what the test wants it to; its own looks, once a second, see only the old topic."""

    brokers = "localhost:1"

    def __init__(self) -> None:
        self.answer: Any = OLD
        self.asked = 0

    def describe(self, name: str) -> Topic:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        found: Topic = self.answer
        return found

    def ends(self, name: str, partitions: Any) -> dict[int, int]:
        return {}


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def watch(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> Iterator[TopicWatch]:
    monkeypatch.setattr("tidemill.logs.kafka.watch.EVERY", 3600.0)
    watch = TopicWatch(admin, OLD, set, timeout=5.0)  # type: ignore[arg-type]  # as much of an admin as it needs
    yield watch
    watch.stop()


def test_records_that_came_after_the_last_look_are_confirmed_by_another(watch: TopicWatch, admin: Admin) -> None:
    came = watch.now()
    watch.confirm(came)
    watch.confirm(came)
    assert admin.asked == 1


def test_records_of_a_topic_that_was_created_again_are_not_confirmed(watch: TopicWatch, admin: Admin) -> None:
    watch.confirm(before := watch.now())
    admin.answer = NEW
    watch.confirm(before)  # these were of the old one
    with pytest.raises(LogChangedError, match="was deleted and created again"):
        watch.confirm(watch.now())
    admin.answer = OLD  # a broker that lags behind
    with pytest.raises(LogChangedError):
        watch.confirm(before)


@pytest.mark.parametrize("error", [MissingTopicError("there is no topic 'orders'"), LogUnavailableError("no answer")])
def test_what_cannot_be_known_now_is_not_counted_now(watch: TopicWatch, admin: Admin, error: Exception) -> None:
    admin.answer = error
    with pytest.raises(LogUnavailableError):
        watch.confirm(watch.now())
    admin.answer = OLD
    watch.confirm(watch.now())
