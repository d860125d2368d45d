"""What `tidemill predict --every` does, as metrics. Counters count from the start of the process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tidemill import __version__
from tidemill.environment import Environment
from tidemill.metrics import Metric, Sample

from .predict import Result


class PredictMetrics:
    """The metrics of a process that scores again and again under one name."""

    def __init__(self, env: Environment, name: str) -> None:
        self._project, self._name = env.project.name, name
        self._runs: Counter[str] = Counter()
        self._last: tuple[Result, float] | None = None
        self._published: tuple[Result, float] | None = None

    def ran(self, result: Result, ended: float) -> None:
        """A run has ended; `ended` in seconds since 1970."""
        runs = self._runs.copy()  # another thread may be reading what was there
        runs[result.outcome] += 1
        self._runs, self._last = runs, (result, ended)
        if result.outcome == "published":
            self._published = result, ended

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of the last run."""
        name = self._name

        def one(metric: str, text: str, value: float) -> Metric:
            return Metric(f"tidemill_predict_{metric}", "gauge", text, ("name",), [Sample((name,), value)])

        yield Metric("tidemill_build_info", "gauge", "Always 1.", ("version", "project"), [Sample((__version__, self._project), 1)])
        runs = [Sample((name, outcome), count) for outcome, count in sorted(self._runs.items())]
        yield Metric("tidemill_predict_runs_total", "counter", "Runs that came to their end.", ("name", "outcome"), runs)
        if self._last is not None:
            result, ended = self._last
            yield one("last_run_timestamp_seconds", "When the last run ended, in seconds since 1970.", ended)
            yield one("last_run_seconds", "How long the last run took.", result.seconds)
            findings = Counter("block" if f.blocks else "warn" for f in result.findings)
            found = [Sample((name, severity), findings[severity]) for severity in ("block", "warn")]
            yield Metric(
                "tidemill_predict_last_run_findings", "gauge", "What the checks of the last run found.", ("name", "severity"), found
            )
        if self._published is not None:
            result, ended = self._published
            yield one("published_timestamp_seconds", "When a run was last published, in seconds since 1970.", ended)
            rows = [Sample((name, status), count) for status, count in sorted(result.statistics.statuses.items())]
            yield Metric("tidemill_predict_published_rows", "gauge", "Rows of the run published last.", ("name", "status"), rows)
