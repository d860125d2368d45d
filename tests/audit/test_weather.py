"""Every read of the seam's weather, logged and computed again at the end: crashes, zombies, roll-backs, changed definitions and all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.seam.test_seam import Seam, run_machine
from tidemill.audit import audit
from tidemill.audit.reads import NOT_SERVING
from tidemill.errors import NotFoundError
from tidemill.journals import Counts, Journal
from tidemill.read_log import READS, ReadLog


class Kept:
    """A journal that keeps what it is given."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def put(self, entry: Any, weight: int = 1) -> bool:
        self.entries.append(entry())
        return True


class Audited(Seam):
    compared = 0

    def _environment(self) -> Any:
        env = super()._environment()
        env.log = lambda _: self.log  # type: ignore[method-assign]
        self.kept = Kept()
        env.__dict__["read_log"] = ReadLog(self.offline, journal=self.kept)  # type: ignore[arg-type]
        return env

    def define(self) -> None:
        before = self.applied.version
        super().define()
        assert self.env.registry.commit(self.applied.spec(), expect=before) == self.applied.version

    def audited(self) -> None:
        """What was read so far, from the archive as far as it goes, and from the log."""
        if not hasattr(self, "log"):
            return
        self.online.calm()
        self.offline.calm()
        journal = Journal(self.offline, READS, clock=lambda: 0)
        for entry in self.kept.entries:
            journal.put(entry)
        self.kept.entries.clear()
        counts = journal.close()
        assert counts == Counts(counts.written, files=counts.files)
        for oracle in (False, True):
            try:
                report = audit(self.env, oracle=oracle, share=0.2 if oracle else 1.0, checks_at_once=200, events_at_once=10)
            except NotFoundError:
                continue
            assert not report.differences, str(report.differences[0])
            assert report.equal == report.compared
            assert set(report.uncompared) <= {NOT_SERVING}
            assert not report.damaged
            type(self).compared += report.compared

    def teardown(self) -> None:
        self.audited()
        super().teardown()


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadLog, "of", classmethod(lambda cls, env: env.__dict__.get("read_log")))


@pytest.mark.parametrize("number", range(4))
def test_every_logged_read_is_equal_in_any_weather(number: int) -> None:
    before = Audited.compared
    run_machine(Audited, 20, 500 + number)
    assert Audited.compared > before + 1_000
