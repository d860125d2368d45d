"""What workers count, over all of them: nothing is lost with a worker, and nothing is counted twice. And keys, and addresses."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.apps import load
from tidemill.errors import DefinitionError, TidemillError

counts = load("serving.counts")
keys = load("serving.keys")
sockets = load("serving.sockets")


def counted(folder: Path) -> int:
    return sum(n for each in counts.read_counts(folder) for n in each.requests.get("/v1/features", {}).values())


def worker(folder: Path, life: int, requests: int, carry: tuple[str, ...] = ()) -> None:
    """A worker that answers some requests, and says so."""
    file = counts.CountsFile(folder, life, counts.Counts(pid=life), carry=carry)
    for _ in range(requests):
        file.counts.answered("/v1/features", 200, 0.001)
    file.write()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20))
def test_sums_over_all_workers_only_grow_however_often_one_takes_anothers_place(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[bool, int]]
) -> None:
    folder = tmp_path_factory.mktemp("counts")
    wanted, ended = 0, []
    for life, (carries, requests) in enumerate(lives):
        worker(folder, life, requests, tuple(ended) if carries else ())
        wanted += requests
        assert counted(folder) == wanted
        ended = [f"worker-{life}.json"] if carries else [*ended, f"worker-{life}.json"]
        counts.remove_carried(folder)
        assert counted(folder) == wanted
    assert len(list(folder.iterdir())) <= len(ended) + 1


def test_a_worker_that_is_asked_counts_itself_as_of_now_and_the_others_as_they_said(tmp_path: Path) -> None:
    worker(tmp_path, 1, 5)
    mine = counts.CountsFile(tmp_path, 2, counts.Counts(pid=2), carry=())
    mine.write()
    mine.counts.answered("/v1/features", 200, 0.1)
    assert sum(each.requests.get("/v1/features", {}).get("200", 0) for each in mine.all()) == 6
    assert mine.counts.times["/v1/features"].counts[counts.BOUNDS.index(0.1)] == 1


def test_everything_that_is_counted_is_carried_on(tmp_path: Path) -> None:
    first = counts.CountsFile(tmp_path, 1, counts.Counts(), carry=())
    first.counts.answered("/a", 200, 0.3)
    first.counts.rows["/a"] = 4
    first.counts.faults["invalid"] = 2
    first.counts.scored["m"] = {"1": {"ok": 3}}
    first.counts.logged["predictions"] = {"written": 5, "dropped": 1}
    first.write()
    second = counts.CountsFile(tmp_path, 2, counts.Counts(), carry=["worker-1.json", "worker-0.json"])
    assert (second.counts.requests, second.counts.rows) == ({"/a": {"200": 1}}, {"/a": 4})
    assert (second.counts.faults, second.counts.scored) == ({"invalid": 2}, {"m": {"1": {"ok": 3}}})
    assert second.counts.logged == {"predictions": {"written": 5, "dropped": 1}}
    assert second.counts.times["/a"].total == 0.3
    assert second.counts.carried == ["worker-1.json"]


# ---- keys ---------------------------------------------------------------------------------------------------------------------------

GOOD, OTHER = "0123456789abcdef", "a-key-of-another-caller"


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who\n\n  {GOOD}  \n")
    found = keys.load_keys(str(file), {"TIDEMILL_API_KEYS": f"{OTHER}, "})
    for key in (GOOD, OTHER):
        assert found.allow([(b"x-api-key", key.encode())])
        assert found.allow([(b"authorization", b"bearer " + key.encode())])
    for wrong in ("", GOOD[:-1], GOOD + "x", "# who", f"{GOOD},{OTHER}"):
        assert not found.allow([(b"x-api-key", wrong.encode())])
    assert not found.allow([])
    assert not keys.load_keys(None, {})
    assert GOOD not in repr(vars(found))


@pytest.mark.parametrize("text", ["", "# none\n", "sesame\n", "with a line\tand a tab that no header has\n", "é" * 20])
def test_a_file_without_a_usable_key_is_refused_and_no_key_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        keys.load_keys(str(file), {})
    assert str(file) in str(caught.value)
    assert text.strip() == "" or text.strip() not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read: No such file"):
        keys.load_keys(str(tmp_path / "none"), {})


# ---- addresses ----------------------------------------------------------------------------------------------------------------------


def test_an_address_is_had_once_and_by_several_workers() -> None:
    with sockets.reserve("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        one, two = sockets.listening("127.0.0.1", port), sockets.listening("127.0.0.1", port)
        with one, two, pytest.raises(TidemillError, match=f"port {port} of 127.0.0.1 is taken"):
            sockets.reserve("127.0.0.1", port)  # by another service
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TidemillError, match="is taken"):
            sockets.reserve("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(TidemillError, match="cannot serve"):
        sockets.reserve(host, 0)
