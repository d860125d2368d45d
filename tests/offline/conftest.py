"""An empty offline store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidemill.offline.store import DirectoryStore, OfflineStore


@pytest.fixture
def store(tmp_path: Path) -> OfflineStore:
    return DirectoryStore(tmp_path / "offline")
