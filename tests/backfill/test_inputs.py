"""Which files a history is, here and in a bucket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.backfill.world import World, job, make_events, write
from tests.servers.s3 import BUCKET, S3Server, s3, s3_of_session
from tidemill.apps import load
from tidemill.errors import LogChangedError, LogError

__all__ = ["s3", "s3_of_session"]

inputs = load("backfill.inputs")
ALL = make_events(1_200)


def names(root: Path, *patterns: str) -> list[str]:
    return [str(Path(file.name).relative_to(root.resolve())) for file in inputs.find_inputs(patterns, root)]


def test_paths_folders_and_globs_each_file_once_and_by_name(tmp_path: Path) -> None:
    for name in ("b.csv", "a/x.jsonl", "a/b/y.parquet", "a/_hidden.jsonl", "a/.h.jsonl", "a/partition=20250101/z.jsonl.gz"):
        write(tmp_path / name, ALL[:1])
    assert names(tmp_path, "a", "b.csv", "a/x.jsonl") == ["a/b/y.parquet", "a/partition=20250101/z.jsonl.gz", "a/x.jsonl", "b.csv"]
    assert names(tmp_path, "*/*.jsonl", "**/*.parquet") == ["a/b/y.parquet", "a/x.jsonl"]
    with pytest.raises(LogError, match="no file matches"):
        names(tmp_path, "b.csv", "c.csv")


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("h/*.csv", "h/a.csv", True),
        ("h/*.csv", "h/a/b.csv", False),
        ("h/**/*.csv", "h/b.csv", True),
        ("h/**/*.csv", "h/a/c/b.csv", True),
        ("h/*a*b.csv", "h/xaxb.csv", True),
        ("h/*a*b.csv", "h/xa/xb.csv", False),
        ("h/[ab].csv", "h/b.csv", True),
        ("h/?.csv", "h/ab.csv", False),
    ],
)
def test_patterns_in_a_bucket_mean_what_they_mean_here(tmp_path: Path, pattern: str, key: str, *, matches: bool) -> None:
    write(tmp_path / key, ALL[:1])
    write(tmp_path / "other.csv", ALL[:1])
    assert inputs._matches(key, pattern) is matches
    if matches:
        assert names(tmp_path, pattern) == [key]


def test_how_many_records_there_are_is_estimated(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"):
        write(tmp_path / name, ALL)
    for file in inputs.find_inputs(["*"], tmp_path):
        assert abs(inputs.estimated_records(file) - 1_200) <= 1


def test_a_file_that_changes_while_it_is_read_stops_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ALL[:10])
    [file] = inputs.find_inputs(["a.jsonl"], tmp_path)
    with pytest.raises(LogChangedError, match="has changed while it was read"), file.local():
        write(path, ALL[:11])


def test_a_file_in_a_bucket_that_changes_before_it_is_read_stops_the_run(tmp_path: Path, s3: S3Server) -> None:
    client = s3.client()
    key = f"changing {os.getpid()}/a.jsonl"
    client.upload_file(str(write(tmp_path / "a.jsonl", ALL[:10])), BUCKET, key)
    [file] = inputs.find_inputs([f"s3://{BUCKET}/{key}"], tmp_path)
    with file.local() as path:
        assert len(path.read_bytes()) == file.size
    client.upload_file(str(write(tmp_path / "a.jsonl", ALL[10:20])), BUCKET, key)
    client.close()
    with pytest.raises(LogChangedError, match="has changed while it was read"), file.local():
        pass


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.jsonl.gz", b"", "it is empty, so it is not gzip"),
        ("a.jsonl.gz", b"hello", "cannot be read"),
        ("a.csv.zst", b"hello", "cannot be read"),
    ],
)
def test_a_damaged_file_is_named_before_anything_is_read(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    [file] = inputs.find_inputs([name], tmp_path)
    with pytest.raises(LogError, match=said) as raised:
        inputs.estimated_records(file)
    assert name in str(raised.value)


def test_a_file_that_has_gone_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ALL[:10])
    [file] = inputs.find_inputs(["a.jsonl"], tmp_path)
    path.unlink()
    with pytest.raises(LogError, match=r"a\.jsonl: cannot be read"), file.local() as local:
        inputs.content_digest(local)


def test_history_in_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    world = World(tmp_path / "p")
    world.live(ALL[1_000:])
    client = s3.client()
    prefix = f"history {os.getpid()}"
    for name, some in (("a.jsonl", ALL[:300]), ("deep/er/b.parquet", ALL[300:700]), ("deep/c.csv.gz", None), ("_d.jsonl", ALL[:5])):
        path = tmp_path / "files" / name
        if some is None:
            path = write(tmp_path / "files" / "deep" / "c.jsonl.gz", ALL[700:1_000])
        else:
            write(path, some)
        client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(tmp_path / 'files')}")
    client.close()
    made = world.backfill(files=(f"s3://{BUCKET}/{prefix}/**/*.*",)).made
    assert [file.name.rpartition("/")[2] for file in made.files] == ["a.jsonl", "c.jsonl.gz", "b.parquet"]
    assert made.events == 1_000
    world.check(ALL)
    assert world.backfill(files=(f"s3://{BUCKET}/{prefix}",)).fresh is False
    plan = load("backfill.plan").plan(world.env, job.Request("events", (f"s3://{BUCKET}/{prefix}/a.jsonl",)))
    assert (plan.events, list(plan.known.values())) == (None, [1])
