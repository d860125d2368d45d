"""Figures for Prometheus: what they look like, and a port that serves them.

What is measured is plain values (`Metric`), computed anew whenever somebody asks; only this module knows the package that writes them
in Prometheus' format. A process serves at most one port, for everything that it looks after.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from tidemill.errors import TidemillError

#: Where metrics are served unless someone says otherwise: they tell names of sources, and nobody is asked for a password.
LOOPBACK = "127.0.0.1"
#: The content type of `text_of`.
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Buckets(NamedTuple):
    """A histogram's values: how many were at most `bounds[i]` and above the bound before, last those above all; and their sum."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class Sample(NamedTuple):
    """One value, and the values of the metric's labels in their order. A histogram's is `Buckets`."""

    labels: tuple[str, ...]
    value: float | Buckets


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric under its full name, a counter's with `_total` at its end."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...]
    samples: Sequence[Sample]


class Endpoint:
    """`http://host:port/metrics`, from the beginning until `close`, or as a context manager. Port 0 is any free one: see `url`.

    `collect` is called in a thread of its own for every answer. Raises `TidemillError` where the port cannot be had, or the package
    is not installed.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]], port: int, host: str = LOOPBACK) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise TidemillError("metrics need the package prometheus-client: pip install 'tidemill[metrics]'") from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(collect))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except socket.gaierror as error:
            raise TidemillError(f"no metrics: {host!r} is no address of this machine ({error.strerror})") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise TidemillError(
                    f"no metrics: port {port} of {host} is taken; stop what listens there, or choose another port"
                ) from error
            raise TidemillError(f"no metrics: cannot listen on {host}, port {port}: {error.strerror or error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Collector:
    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Any]:
        return map(_family, self._collect())


def _family(metric: Metric) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family = kinds[metric.kind](metric.name, metric.text, labels=metric.labels)
    for labels, value in metric.samples:
        if isinstance(value, Buckets):
            family.add_metric(labels, _cumulated(value), value.total)
        else:
            family.add_metric(labels, value)
    return family


def _cumulated(value: Buckets) -> list[tuple[str, float]]:
    """As Prometheus wants it: by upper bound, how many were at most that."""
    found: list[tuple[str, float]] = []
    so_far = 0
    for bound, count in zip([*map(str, value.bounds), "+Inf"], value.counts, strict=True):
        so_far += count
        found.append((bound, so_far))
    return found


def text_of(metrics: Iterable[Metric]) -> bytes:
    """Metrics in Prometheus' text format, for a service that has a port already. Raises `TidemillError` without the package."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        raise TidemillError("metrics need the package prometheus-client: pip install 'tidemill[metrics]'") from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(lambda: metrics))
    return bytes(generate_latest(registry))
