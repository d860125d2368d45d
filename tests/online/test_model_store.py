from __future__ import annotations

import pytest

from tests.online.contract import OnlineStoreContract
from tests.online.model_store import MemoryStore
from tests.online.processes import Connect


class TestMemoryStore(OnlineStoreContract):
    @pytest.fixture
    def connect(self) -> Connect:
        return MemoryStore
