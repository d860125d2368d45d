"""Values as JSON that says them exactly: a float by the shortest text that reads back to its bits, an int by all its digits.

What JSON has no word for is an object with one key: `{"$time": microseconds}`, `{"$float": "nan"}`, `{"$hex": "00ff"}`. What nobody
can read back is `{"$repr": text}`, so that a line is written all the same.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from tidemill.times import from_micros, to_micros


def plain(value: Any) -> Any:
    """A value as `json` can write it.

    >>> plain([2**60 + 1, 0.1, from_micros(5), None, float("inf")])
    [1152921504606846977, 0.1, {'$time': 5}, None, {'$float': 'inf'}]
    """
    kind = type(value)
    if value is None or kind is int or kind is str or kind is bool:
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (dt.datetime, np.datetime64)):
        return None if str(value) == "NaT" else {"$time": to_micros(value)}
    if isinstance(value, np.generic) and type(value.item()) is not kind and not isinstance(value, (np.datetime64, np.timedelta64)):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, str):  # of a class of its own, as the members of an enumeration are
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, (Real, Decimal)):  # an on-demand feature gets the float of it
        return plain(float(value))
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    return {"$repr": repr(value)}


def exact(value: Any) -> Any:
    """The value that `plain` wrote; instants are aware datetimes.

    >>> exact(plain([0.1, from_micros(5), {"a": float("inf")}])) == [0.1, from_micros(5), {"a": float("inf")}]
    True
    """
    if isinstance(value, list):
        return [exact(v) for v in value]
    if isinstance(value, dict):
        if len(value) == 1:
            ((key, inner),) = value.items()
            if key == "$time":
                return from_micros(inner)
            if key == "$float":
                return float(inner)
            if key == "$hex":
                return bytes.fromhex(inner)
        return {k: exact(v) for k, v in value.items()}
    return value
