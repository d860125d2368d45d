"""What the workers of a service do, as metrics: of all of them, whichever is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidemill import __version__
from tidemill.metrics import Buckets, Metric, Sample

from .counts import BOUNDS, SHOWN, Counts, newest


def collect(workers: Sequence[Counts], project: str) -> Iterator[Metric]:
    """All metrics. Labels never name an entity."""
    total = Counts()
    for worker in workers:
        total.add(worker)
    yield Metric("tidemill_build_info", "gauge", "Always 1.", ("version", "project"), [Sample((__version__, project), 1)])
    up = [Sample((str(w.index), str(w.pid)), float(w.ready)) for w in sorted(workers, key=lambda w: (w.index, w.pid))]
    yield Metric("tidemill_serve_worker_ready", "gauge", "1 while the worker answers.", ("worker", "pid"), up)
    requests = [Sample((route, status), n) for route, found in sorted(total.requests.items()) for status, n in sorted(found.items())]
    yield Metric("tidemill_http_requests_total", "counter", "Requests answered.", ("route", "status"), requests)
    times = [Sample((route,), Buckets(BOUNDS, t.counts, t.total)) for route, t in sorted(total.times.items())]
    text = "Seconds from a request's first byte to the end of its answer."
    yield Metric("tidemill_http_request_seconds", "histogram", text, ("route",), times)
    rows = [Sample((route,), n) for route, n in sorted(total.rows.items())]
    yield Metric("tidemill_http_rows_total", "counter", "Entity rows answered.", ("route",), rows)
    faults = [Sample((kind,), n) for kind, n in sorted(total.faults.items())]
    yield Metric("tidemill_http_errors_total", "counter", "Requests answered with an error, by its type.", ("type",), faults)
    scored = [
        Sample((model, version, outcome), n)
        for model, versions in sorted(total.scored.items())
        for version, outcomes in sorted(newest(versions, SHOWN).items())
        for outcome, n in sorted(outcomes.items())
    ]
    text = "Rows scored, by what became of them; of a model's newest versions, and of all older ones together."
    yield Metric("tidemill_scored_rows_total", "counter", text, ("model", "version", "outcome"), scored)
    logged = [Sample((log, outcome), n) for log, outcomes in sorted(total.logged.items()) for outcome, n in outcomes.items()]
    text = "Answers that were to be logged, by what became of them; those that were dropped or failed are in no log."
    yield Metric("tidemill_log_entries_total", "counter", text, ("log", "outcome"), logged)
    loaded = [(w, m) for w in workers for m in w.models]
    known = [Sample((str(w.index), str(w.pid), m.reference, m.version), 1) for w, m in loaded]
    yield Metric("tidemill_model_info", "gauge", "1 for the version that answers.", ("worker", "pid", "model", "version"), known)
    held = [Sample((str(w.index), str(w.pid), m.reference), float(m.held)) for w, m in loaded]
    text = "1 while a version that was promoted is refused, and another goes on."
    yield Metric("tidemill_model_refused", "gauge", text, ("worker", "pid", "model"), held)
    looked = [Sample((str(w.index), str(w.pid), m.reference), m.looked) for w, m in loaded]
    text = "When promotions were last looked for, in seconds since 1970."
    yield Metric("tidemill_model_looked_timestamp_seconds", "gauge", text, ("worker", "pid", "model"), looked)
