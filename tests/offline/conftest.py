"""An empty offline store: in a directory, and in a bucket."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from tests.servers.s3 import BUCKET, s3, s3_of_session
from tidemill.offline.store import OfflineStore

__all__ = ["s3", "s3_of_session"]

_numbers = itertools.count()


@pytest.fixture(params=["directory", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of the store, for other processes."""
    if request.param == "directory":
        return str(tmp_path / "offline")
    request.getfixturevalue("s3")
    return f"s3://{BUCKET}/shared {os.getpid()}/{next(_numbers)}"


@pytest.fixture
def store(url: str, tmp_path: Path) -> OfflineStore:
    return OfflineStore.open(url, base=tmp_path)
