"""Leases: one holder at a time, as far as clocks agree; late owners change nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tidemill
from tidemill.errors import LeaseError, StoreError
from tidemill.offline.leases import Lease, this_process
from tidemill.offline.store import OfflineStore

REPOSITORY = Path(tidemill.__path__[0]).parent


class Clock:
    """A clock that only the test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lease(store: OfflineStore, clock: Clock, owner: str) -> Lease:
    return Lease(store, "batch/s", seconds=60, clock=clock, owner=owner)


def test_the_second_is_told_who_holds_it_and_until_when(store: OfflineStore, clock: Clock) -> None:
    assert lease(store, clock, "first").acquire() == 1
    with pytest.raises(LeaseError, match=r"'batch/s' is held by first until 1970-01-12T13:47:40\+00:00"):
        lease(store, clock, "second").acquire()


def test_a_lease_that_ran_out_is_taken_over_by_the_next_generation(store: OfflineStore, clock: Clock) -> None:
    first, second = lease(store, clock, "first"), lease(store, clock, "second")
    first.acquire()
    clock.now += 60
    assert second.holder() is None
    assert second.acquire() == 2
    assert store.list("leases/batch/s") == ["leases/batch/s/00000002.json"]


def test_renewing_keeps_it_beyond_the_first_expiry(store: OfflineStore, clock: Clock) -> None:
    first, second = lease(store, clock, "first"), lease(store, clock, "second")
    first.acquire()
    for _ in range(5):
        clock.now += 50
        assert first.renew() == 1
        with pytest.raises(LeaseError, match="held by first"):
            second.acquire()


def test_a_released_lease_is_free_at_once(store: OfflineStore, clock: Clock) -> None:
    with lease(store, clock, "first") as first:
        assert first.generation == 1
        holder = first.holder()
        assert holder
        assert holder.owner == "first"
    assert first.generation is None
    assert first.holder() is None
    assert lease(store, clock, "second").acquire() == 2


def test_acquiring_again_renews_what_is_held(store: OfflineStore, clock: Clock) -> None:
    first = lease(store, clock, "first")
    first.acquire()
    clock.now += 50
    assert first.acquire() == 1
    clock.now += 50
    with pytest.raises(LeaseError, match="held by first"):
        lease(store, clock, "second").acquire()


def test_one_who_slept_through_its_lease_learns_it_when_it_renews(store: OfflineStore, clock: Clock) -> None:
    sleeper, second = lease(store, clock, "sleeper"), lease(store, clock, "second")
    sleeper.acquire()
    clock.now += 61
    second.acquire()
    with pytest.raises(LeaseError, match="held by second"):
        sleeper.renew()
    assert sleeper.generation is None
    with pytest.raises(LeaseError, match="acquire it before it is renewed"):
        sleeper.renew()


def test_one_whose_clock_stands_still_learns_it_too_and_takes_nothing_back(store: OfflineStore, clock: Clock) -> None:
    stopped, second = lease(store, Clock(), "stopped"), lease(store, clock, "second")
    stopped.acquire()
    clock.now += 61
    second.acquire()
    with pytest.raises(LeaseError, match="held by second"):
        stopped.renew()
    stopped.release()
    holder = second.holder()
    assert holder
    assert (holder.generation, holder.owner) == (2, "second")


def test_a_late_release_or_write_of_an_old_generation_changes_nothing(store: OfflineStore, clock: Clock) -> None:
    sleeper, second = lease(store, clock, "sleeper"), lease(store, clock, "second")
    sleeper.acquire()
    clock.now += 61
    second.acquire()
    sleeper.release()
    with pytest.raises(LeaseError, match="held by second"):
        lease(store, clock, "third").acquire()
    assert second.renew() == 2


def test_one_that_ran_out_and_nobody_took_goes_on_as_a_new_generation(store: OfflineStore, clock: Clock) -> None:
    first = lease(store, clock, "first")
    first.acquire()
    clock.now += 100
    assert first.renew() == 2
    with pytest.raises(LeaseError, match="held by first"):
        lease(store, clock, "second").acquire()


def test_whoever_loses_the_race_for_an_expired_lease_is_told_so(store: OfflineStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create

    def beaten(key: str, data: bytes) -> bool:
        monkeypatch.setattr(store, "create", create)
        lease(store, clock, "faster").acquire()
        return create(key, data)

    monkeypatch.setattr(store, "create", beaten)
    with pytest.raises(LeaseError, match="held by faster"):
        lease(store, clock, "slower").acquire()


def test_a_listing_that_missed_the_newest_generation_gives_nobody_a_second_lease(
    store: OfflineStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lease(store, clock, "first")
    first.acquire()
    clock.now += 100
    first.acquire()
    whole = store.list
    torn: list[list[str]] = [[]]
    monkeypatch.setattr(store, "list", lambda prefix: torn.pop() if torn else whole(prefix))
    with pytest.raises(LeaseError, match="held by first"):
        lease(store, clock, "second").acquire()


def test_leases_of_other_names_are_apart_and_owners_are_processes(store: OfflineStore, clock: Clock) -> None:
    Lease(store, "a", clock=clock).acquire()
    Lease(store, "b", clock=clock).acquire()
    holder = Lease(store, "a", clock=clock).holder()
    assert holder
    assert holder.owner == this_process()


def test_a_damaged_lease_is_named(store: OfflineStore, clock: Clock) -> None:
    store.write("leases/batch/s/00000003.json", b"{}")
    with pytest.raises(StoreError, match=r"00000003.json should name the owner"):
        lease(store, clock, "first").acquire()


def test_of_many_processes_that_take_over_an_expired_lease_one_holds_it(store: OfflineStore, url: str, clock: Clock) -> None:
    script = """
import sys
from pathlib import Path
from tidemill.errors import LeaseError
from tidemill.offline.leases import Lease
from tidemill.offline.store import OfflineStore
store = OfflineStore.open(sys.argv[1], base=Path())
rounds = [Lease(store, f"race/{n}", seconds=60, clock=lambda: 2e6, owner=sys.argv[2]) for n in range(20)]
sys.stdin.readline()
for n, lease in enumerate(rounds):
    try:
        lease.acquire()
        print(n)
    except LeaseError:
        pass
"""
    for n in range(20):
        Lease(store, f"race/{n}", seconds=60, clock=clock, owner="crashed").acquire()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, url, f"racer {i}"], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for i in range(3)
    ]
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = sorted(int(line) for racer in racers for line in racer.communicate(timeout=60)[0].split())
    assert won == list(range(20))
