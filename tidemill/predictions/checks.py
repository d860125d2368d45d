"""What is checked before a run is published: what is found is a warning, or it blocks the run, and the last good one stays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.definitions.names import suggestion
from tidemill.errors import RequestError
from tidemill.predictions.scorer import NONFINITE
from tidemill.predictions.statistics import Statistics, population_stability


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a run is worth a warning, or is blocked. Shares are of its rows; None switches a limit off.

    `min_rows`: fewer rows block. `warn_shrink`, `block_shrink`: of a frame, rows as a share of the last run's. `warn_nulls`,
    `block_nulls`: the share without a score. `block_nonfinite`: the share for which the model returned NaN or an infinity.
    `warn_coverage`, `block_coverage`: the least share that the model itself scored, and not a fallback. `min_score`, `max_score`: one score
    beyond blocks (None: the bounds are the model's own). `warn_psi`, `block_psi`: the population stability index against the last run,
    where both have `psi_rows` scores.
    """

    min_rows: float | None = 1
    warn_shrink: float | None = 0.5
    block_shrink: float | None = None
    warn_nulls: float | None = 0.01
    block_nulls: float | None = 0.2
    block_nonfinite: float | None = 0.0
    warn_coverage: float | None = 0.9
    block_coverage: float | None = 0.5
    min_score: float | None = None
    max_score: float | None = None
    warn_psi: float | None = 0.1
    block_psi: float | None = 0.5
    psi_rows: float | None = 1000

    def changed(self, settings: Mapping[str, Any]) -> Limits:
        """These limits with others set: numbers, or "off". Raises `RequestError`.

        >>> Limits().changed({"block_psi": "off", "max_score": "1"}).block_psi is None
        True
        """
        return dataclasses.replace(self, **{name: _limit(name, value) for name, value in settings.items()})


#: Their names, as options and in tidemill.toml.
NAMES = tuple(field.name for field in dataclasses.fields(Limits))


#: What switches these off: without a bound of their own, the model's holds.
_NO_BOUND = {"min_score": -math.inf, "max_score": math.inf}


def _limit(name: str, value: object) -> float | None:
    if name not in NAMES:
        raise RequestError(f"there is no check {name!r}; {suggestion(name, NAMES)}")
    if value == "off":
        return _NO_BOUND.get(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f'the limit of {name} is {value!r}: give a number, or "off"')
    return number


@dataclass(frozen=True, slots=True)
class Finding:
    """One check that did not find what it expects. `blocks`: whether the run must not be published."""

    check: str
    blocks: bool
    text: str


def findings(
    now: Statistics, last: Statistics | None, limits: Limits, *, frame: bool, range: tuple[float, float] | None = None
) -> list[Finding]:
    """What is wrong with a run, compared with `last`, the one that is published.

    `frame`: it scored all that was given, and not what has changed, so that its rows compare with the last one's. `range`: what the model
    itself says of its scores.
    """
    return [*_counts(now, limits), *_range(now, limits, range), *_against(now, last, limits, frame=frame)]


def _counts(now: Statistics, limits: Limits) -> Iterator[Finding]:
    if limits.min_rows is not None and now.rows < limits.min_rows:
        yield Finding("rows", True, f"{now.rows:,} rows, and at least {limits.min_rows:,.0f} are expected")
    rows = max(now.rows, 1)
    nulls = (now.rows - now.scored) / rows
    yield from _share("nulls", nulls, limits.warn_nulls, limits.block_nulls, f"{nulls:.2%} of the rows have no score")
    broken = now.statuses.get(NONFINITE, 0) / rows
    text = f"of {broken:.2%} of the rows the model's score is not a finite number"
    yield from _share("nonfinite", broken, None, limits.block_nonfinite, text)
    lacking = 1 - now.covered / rows
    text = f"the model scored {now.covered / rows:.2%} of the rows"
    if now.rows:
        warn, block = (None if limit is None else 1 - limit for limit in (limits.warn_coverage, limits.block_coverage))
        yield from _share("coverage", lacking, warn, block, text, shown=lambda limit: f"at least {1 - limit:.0%} expected")


def _range(now: Statistics, limits: Limits, range: tuple[float, float] | None) -> Iterator[Finding]:
    least = limits.min_score if limits.min_score is not None or range is None else range[0]
    most = limits.max_score if limits.max_score is not None or range is None else range[1]
    if least is not None and now.low is not None and now.low < least:
        yield Finding("range", True, f"the lowest score is {now.low!r}, below {least!r}")
    if most is not None and now.high is not None and now.high > most:
        yield Finding("range", True, f"the highest score is {now.high!r}, above {most!r}")


def _against(now: Statistics, last: Statistics | None, limits: Limits, *, frame: bool) -> Iterator[Finding]:
    if last is None:
        return
    if frame and last.rows:
        share = now.rows / last.rows
        for blocks, limit in ((True, limits.block_shrink), (False, limits.warn_shrink)):
            if limit is not None and share < limit:
                yield Finding("shrink", blocks, f"{now.rows:,} rows are {share:.0%} of the last run's {last.rows:,}")
                break
    if min(now.scored, last.scored) >= max(limits.psi_rows or 0, 1):
        psi = population_stability(last, now)
        yield from _share("psi", psi, limits.warn_psi, limits.block_psi, f"the scores have drifted from the last run's: PSI {psi:.3f}")


def _share(check: str, value: float, warn: float | None, block: float | None, text: str, shown: Any = None) -> Iterator[Finding]:
    for blocks, limit in ((True, block), (False, warn)):
        # A share and one less its opposite differ in the last bit: 1 - 0.9 is less than 0.1.
        if limit is not None and value > limit + 1e-12:
            said = f"at most {limit:g} expected" if shown is None else shown(limit)
            yield Finding(check, blocks, f"{text} ({said})")
            return
