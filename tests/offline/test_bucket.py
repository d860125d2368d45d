"""The offline store in a bucket: the contract against a real S3 server, and what only a bucket can do wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pytest
import s3fs

from tests.offline.contract import REPOSITORY, OfflineStoreContract, opened
from tests.servers.s3 import BUCKET, Fault, Request, S3Server
from tidemill.errors import DefinitionError, StoreError, StoreUnavailableError
from tidemill.offline.bucket import BucketStore
from tidemill.offline.store import OfflineStore

_numbers = itertools.count()


def fresh() -> str:
    """The URL of a store that nobody has used."""
    return f"s3://{BUCKET}/test {os.getpid()}/[odd] *name* {next(_numbers)}"


class TestBucketStore(OfflineStoreContract):
    @pytest.fixture
    def url(self, s3: S3Server) -> str:
        return fresh()


@pytest.fixture
def store(s3: S3Server) -> BucketStore:
    """A store that has been written to, and so asks for nothing but what it is told to."""
    store = BucketStore(fresh(), seconds=5)
    store.write("first", b"")
    s3.requests.clear()
    return store


def once(fault: Fault, method: str) -> Callable[[Request], Fault | None]:
    """The fault, for the first request of this method."""
    left = [fault]
    return lambda request: left.pop() if left and request.method == method else None


def asked(s3: S3Server) -> list[tuple[str, str | None]]:
    """The requests since the last time, each with its condition."""
    found = [(request.method, request.condition) for request in s3.requests]
    s3.requests.clear()
    return found


# One request for each operation


def test_a_creation_is_one_conditional_put_without_a_look_before(s3: S3Server, store: BucketStore) -> None:
    assert store.create("a/b", b"1")
    assert asked(s3) == [("PUT", "*")]
    assert not store.create("a/b", b"2")
    assert asked(s3) == [("PUT", "*"), ("HEAD", None)]  # and afterwards a look whose it is


def test_large_objects_are_put_and_got_in_one_piece(s3: S3Server, store: BucketStore) -> None:
    store = BucketStore(store.path(""))
    store.create("a/b", b"")
    asked(s3)
    data = bytes(120 * 2**20)  # s3fs by itself would put it in parts from 100 MiB on, and get it in parts from 50 MiB on
    assert store.create("large", data)
    store.write("large", data)
    assert store.read("large") == data
    assert asked(s3) == [("PUT", "*"), ("PUT", None), ("GET", None)]
    store.delete("large")


def test_a_frame_is_fetched_once_however_often_it_is_collected(s3: S3Server, store: BucketStore) -> None:
    store.write_frame("f.parquet", pl.DataFrame({"n": range(1000)}))
    asked(s3)
    frame = store.scan("f.parquet")
    assert frame.select(pl.len()).collect().item() == frame.slice(0, 1000).collect().height == 1000
    assert asked(s3) == [("GET", None)]


def test_a_listing_of_many_pages_is_whole(store: BucketStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.offline.s3._PAGE", 4)
    files, folders = [f"many/{n:02d}" for n in range(23)], [f"many/{n:02d}x" for n in range(0, 23, 3)]
    for key in [*files, *(f"{folder}/y" for folder in folders)]:
        store.write(key, b"")
    assert store.list("many") == files
    assert store.folders("many") == folders


def test_what_consoles_and_other_programs_leave_in_a_folder_is_not_listed(s3: S3Server, store: BucketStore) -> None:
    store.write("a/b", b"")
    client = s3.client()
    for name in ("a/", "a/.hidden", "a/.git/config", "a"):
        client.put_object(Bucket=BUCKET, Key=store.path(name).removeprefix(f"s3://{BUCKET}/"), Body=b"")
    client.close()
    assert store.list("a") == ["a/b"]
    assert store.folders("a") == []


def test_a_store_may_be_the_whole_bucket(s3: S3Server) -> None:
    client = s3.client()
    client.create_bucket(Bucket="whole-bucket")
    client.close()
    store = opened("s3://whole-bucket")
    assert store.list("") == store.folders("") == []
    store.write("a/b", b"1")
    assert store.list("") == ["format.json"]
    assert store.folders("") == ["a"]
    assert opened("s3://whole-bucket/").path("a/b") == "s3://whole-bucket/a/b"


# Answers that do not come


def test_a_creation_whose_answer_was_lost_is_known_as_ones_own(s3: S3Server, store: BucketStore) -> None:
    s3.fault = once(Fault(lost=True), "PUT")
    assert store.create("a/b", b"mine")
    assert asked(s3) == [("PUT", "*"), ("PUT", "*"), ("HEAD", None)]
    assert store.read("a/b") == b"mine"


def test_a_creation_that_was_refused_stays_refused_though_the_answer_was_lost(s3: S3Server, store: BucketStore) -> None:
    assert store.create("a/b", b"same")
    s3.fault = once(Fault(lost=True), "PUT")
    assert not store.create("a/b", b"same")


def test_a_creation_that_met_another_request_is_tried_again(s3: S3Server, store: BucketStore) -> None:
    s3.fault = once(Fault(status=409), "PUT")
    assert store.create("a/b", b"1")
    assert asked(s3) == [("PUT", "*"), ("PUT", "*")]


def test_a_read_that_breaks_off_in_the_middle_is_tried_again(s3: S3Server, store: BucketStore) -> None:
    store.write("a/b", bytes(1_000_000))
    s3.fault = once(Fault(broken=True), "GET")
    assert store.read("a/b") == bytes(1_000_000)
    assert len(asked(s3)) == 3
    s3.fault = lambda request: Fault(broken=True)
    with pytest.raises(StoreUnavailableError, match=r"cannot read s3://.*/a/b: S3 does not answer"):
        store.read("a/b")


def every_operation(store: OfflineStore) -> list[Callable[[], object]]:
    return [
        lambda: store.read("a/b"),
        lambda: store.write("a/b", b""),
        lambda: store.create("a/c", b""),
        lambda: store.list("a"),
        lambda: store.folders("a"),
        lambda: store.exists("a/b"),
        lambda: store.size("a/b"),
        lambda: store.delete("a/b"),
        lambda: store.scan(["a/b", "a/b"]),
        lambda: store.read_frame("a/b"),
    ]


def test_a_server_that_is_away_is_unavailable_and_has_what_it_acknowledged_when_it_is_back(
    s3: S3Server, store: BucketStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = BucketStore(store.path(""))
    store.write("a/b", b"1")
    s3.stop()
    try:
        for operation in every_operation(store):
            with pytest.raises(StoreUnavailableError, match=r"cannot \w+.* s3://.*: S3 does not answer .*AWS_ENDPOINT_URL") as raised:
                operation()
            assert str(s3.port) not in "".join(traceback.format_exception(raised.value)).replace(store.path(""), "")
    finally:
        s3.start()
    assert store.read("a/b") == b"1"
    assert store.create("a/c", b"")


def test_a_server_that_is_silent_is_unavailable_after_the_time_out(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = opened(fresh())
    store.write("a/b", b"")
    s3.fault = lambda request: Fault(silent=True)
    for operation in every_operation(BucketStore(store.path(""), seconds=0.9)):
        begun = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="S3 does not answer"):
            operation()
        assert time.monotonic() - begun < 10.0  # 0.3 s, where the machine has nothing else to do


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_takes_no_requests_is_unavailable(
    s3: S3Server, store: BucketStore, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    s3.fault = once(Fault(status=status), "GET")
    assert store.read("first") == b""  # for a moment only: tried again
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = BucketStore(store.path(""))
    s3.fault = lambda request: Fault(status=status)
    for operation in every_operation(store):
        with pytest.raises(StoreUnavailableError, match=f"S3 takes no requests now .{status}.: wait for it"):
            operation()


# Settings


def test_a_bucket_that_is_not_there_is_said_when_the_store_is_opened(s3: S3Server) -> None:
    with pytest.raises(
        StoreError, match=r"s3://no-such-bucket/x/format.json: there is no such bucket: create it, or correct \[offline\] url"
    ):
        opened("s3://no-such-bucket/x")


def test_denied_access_says_which_rights_are_needed(s3: S3Server, store: BucketStore) -> None:
    s3.fault = lambda request: Fault(status=403)
    for operation in every_operation(store):
        with pytest.raises(StoreError, match="access is denied: allow these credentials s3:ListBucket, and s3:GetObject") as raised:
            operation()
        assert not isinstance(raised.value, StoreUnavailableError)


def test_without_credentials_the_error_says_where_they_are_looked_for(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match=r"there are no credentials for S3 .*set AWS_ACCESS_KEY_ID and .*, or AWS_PROFILE"):
        opened(fresh())


def test_credentials_may_come_from_the_usual_files(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[shop]\naws_access_key_id = testing\naws_secret_access_key = testing-secret\n")
    (tmp_path / "config").write_text(f"[profile shop]\nregion = us-east-1\nendpoint_url = {s3.url}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "shop")
    store = opened(fresh())
    assert store.create("a/b", b"1")
    assert store.read("a/b") == b"1"


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL", "secret"), ("AWS_PROFILE", "secret")])
def test_a_setting_that_cannot_be_is_an_error_that_does_not_show_it(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="S3") as raised:
        opened(fresh())
    assert "secret" not in "".join(traceback.format_exception(raised.value)).replace("AWS_SECRET", "")


@pytest.mark.parametrize(
    "url",
    ["s3://key:secret@bucket/x", "s3://secret@bucket", "s3://bucket/x?key=k&secret=s", "s3://bucket/x#secret", "s3:///secret", "s3://"],
)
def test_a_url_with_more_or_less_than_a_bucket_and_a_prefix_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DefinitionError, match=r"\[offline\] url: expected s3://bucket/prefix") as raised:
        opened(url)
    assert "secret" not in "".join(traceback.format_exception(raised.value, limit=0))


@pytest.mark.parametrize("prefix", ["a//b", "../a", "a/.b", "a\\b"])
def test_a_prefix_that_hides_or_climbs_is_refused(prefix: str) -> None:
    with pytest.raises(DefinitionError, match="no part of the prefix is empty"):
        opened(f"s3://bucket/{prefix}")


def test_a_server_that_takes_no_notice_of_conditions_is_refused_before_anything_is_written(s3: S3Server) -> None:
    s3.fault = lambda request: Fault(unconditional=True)
    store = opened(fresh())
    for operation in (lambda: store.write("a/b", b""), lambda: store.create("a/b", b"")):
        with pytest.raises(StoreError, match="takes no notice of If-None-Match"):
            operation()
    assert store.folders("") == []


def test_a_server_that_says_it_knows_no_conditions_is_refused(s3: S3Server) -> None:
    s3.fault = lambda request: Fault(status=501) if request.condition else None
    store = opened(fresh())
    with pytest.raises(StoreError, match="the server has no conditional writes"):
        store.write("a/b", b"")


def test_without_the_extra_the_error_names_it() -> None:
    program = """
import sys
sys.modules["s3fs"] = None
from pathlib import Path
from tidemill.errors import DefinitionError
from tidemill.offline.store import OfflineStore
try:
    OfflineStore.open("s3://bucket/prefix", base=Path())
except DefinitionError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[offline] url: a bucket needs the client of S3: pip install 'tidemill[s3]'"


# Processes, and other programs


def test_after_a_fork_parent_and_child_go_on_each_by_itself(s3: S3Server) -> None:
    program = """
import os, sys
from pathlib import Path
from tidemill.offline.store import OfflineStore
store = OfflineStore.open(sys.argv[1], base=Path())
store.write("parent", b"1")
child = os.fork()
if not child:
    store.write("child", store.read("parent") + b"2")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
store.write("parent", store.read("child") + b"3")
"""
    url = fresh()
    subprocess.run([sys.executable, "-W", "error", "-c", program, url], cwd=REPOSITORY, check=True, timeout=60)
    assert opened(url).read("parent") == b"123"


def test_a_process_that_used_a_bucket_ends_without_a_word(s3: S3Server) -> None:
    program = "import sys; from tidemill.offline.bucket import BucketStore; BucketStore(sys.argv[1]).write('a', bytes(2_000_000))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, fresh()], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""


def test_pandas_and_duckdb_read_what_is_in_the_bucket(s3: S3Server) -> None:
    store = opened(f"s3://{BUCKET}/plain-{os.getpid()}")
    for n in range(3):
        store.write_frame(f"archive/s/00000/{n}.parquet", pl.DataFrame({"card": ["a", "b"], "amount": [n, 10 * n]}))
    assert pd.read_parquet(store.path("archive/s/00000/2.parquet"))["amount"].tolist() == [2, 20]
    with duckdb.connect() as connection:
        connection.register_filesystem(s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False))
        files = store.path("archive/*/*/*.parquet")
        found = connection.execute("select card, sum(amount)::int from read_parquet(?) group by card order by card", [files]).fetchall()
    assert found == [("a", 3), ("b", 30)]
