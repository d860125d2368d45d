"""The registry: numbered versions, committed by one and seen by all."""

from __future__ import annotations

import pytest

from tidemill.errors import StoreError
from tidemill.offline.registry import Registry
from tidemill.offline.store import OfflineStore


def test_an_empty_registry_has_no_version(store: OfflineStore) -> None:
    registry = Registry(store)
    assert registry.current() is None
    assert registry.version() == 0
    assert registry.history() == []


def test_commits_are_numbered_and_kept(store: OfflineStore) -> None:
    registry = Registry(store)
    assert registry.commit({"views": ["a"]}, expect=0) == 1
    assert registry.commit({"views": ["a", "é"]}, expect=1) == 2
    assert Registry(store).current() == (2, {"views": ["a", "é"]})
    assert Registry(store).history() == [(1, {"views": ["a"]}), (2, {"views": ["a", "é"]})]
    assert registry.read(1) == {"views": ["a"]}


@pytest.mark.parametrize("expect", [0, 1, 3])
def test_a_commit_that_expects_another_version_is_refused(store: OfflineStore, expect: int) -> None:
    registry = Registry(store)
    registry.commit({"n": 1}, expect=0)
    registry.commit({"n": 2}, expect=1)
    with pytest.raises(StoreError, match=f"stands at version 2, and this change was made for version {expect}"):
        registry.commit({"n": 3}, expect=expect)
    assert registry.current() == (2, {"n": 2})


def test_of_two_that_commit_at_once_one_is_told_to_plan_again(store: OfflineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create

    def beaten(key: str, data: bytes) -> bool:
        create(key, b'{"by": "another"}')
        return create(key, data)

    monkeypatch.setattr(store, "create", beaten)
    with pytest.raises(StoreError, match="plan and apply again"):
        Registry(store).commit({"by": "us"}, expect=0)
    assert Registry(store).current() == (1, {"by": "another"})


def test_the_same_content_has_the_same_bytes(store: OfflineStore) -> None:
    registry = Registry(store)
    registry.commit({"b": {"y": 1, "x": 2}, "a": None}, expect=0)
    registry.commit({"a": None, "b": {"x": 2, "y": 1}}, expect=1)
    assert store.read("registry/000001.json") == store.read("registry/000002.json")


@pytest.mark.parametrize(("spec", "error"), [({"x": float("nan")}, ValueError), ({"x": {1, 2}}, TypeError)])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(
    store: OfflineStore, spec: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        Registry(store).commit(spec, expect=0)
    assert Registry(store).current() is None


def test_a_damaged_or_absent_version_is_named(store: OfflineStore) -> None:
    store.write("registry/000001.json", b'{"half')
    with pytest.raises(StoreError, match=r"registry/000001.json should be a JSON object, and is not even JSON"):
        Registry(store).current()
    with pytest.raises(StoreError, match="version 2 of the registry does not exist"):
        Registry(store).read(2)
