"""What holds for every test: one Polars thread per process, and Hypothesis without a deadline."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

# Before anything imports Polars, which reads it once; the processes that tests start inherit it. Several test processes share
# the machine's few cores, and a pool of threads in each only makes small frames slower.
os.environ.setdefault("POLARS_MAX_THREADS", "1")

from hypothesis import HealthCheck, settings

# A deadline measures the machine, not the code. Failures print the line that reproduces them, in CI too, where no database is kept.
settings.register_profile("test", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("test"), max_examples=20_000)
settings.load_profile("test")


@pytest.fixture(autouse=True, scope="module")
def _no_client_left_open() -> Iterator[None]:
    """Who forgets to close a Kafka client leaves a thread that asks a broker that is gone, for ever, with random pauses.

    Other tests of the process see that: Hypothesis takes it for randomness of theirs.
    """
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 10.0
    while left := [t.name for t in threading.enumerate() if t not in before and "kafka" in t.name]:
        assert time.monotonic() < deadline, f"threads of clients that nobody closed: {left}"
        time.sleep(0.05)
