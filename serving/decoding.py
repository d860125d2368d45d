"""Bodies of requests: strictly read, or refused with a sentence that says what is wrong where."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import msgspec

from .faults import Fault

T = TypeVar("T", bound=msgspec.Struct)


def decode(body: bytes, decoder: msgspec.json.Decoder[T], max_rows: int) -> T:
    """The request in a body. Raises `Fault`: malformed (no JSON), invalid (not this form of it), too_many_rows.

    JSON has neither NaN nor infinity, and names nothing twice; an integer beyond 64 bits is no value of a column.
    """
    try:
        found = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Fault("invalid", f"{_lower(str(error))}; /openapi.json says what a request looks like") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Fault("malformed", f"the body is not JSON in UTF-8 (which has no NaN, and no Infinity): {_lower(str(error))}") from None
    except RecursionError:
        raise Fault("malformed", "the body is nested too deep") from None
    rows: list[dict[str, Any]] = found.entity_rows  # type: ignore[attr-defined]
    if len(rows) > max_rows:
        raise Fault(
            "too_many_rows", f"{len(rows):,} entity rows, and a request may have {max_rows:,}: send them in several", limit=max_rows
        )
    # Every name has a colon: where there are no more of them than different names that were found, none stood there twice.
    named = sum(getattr(found, name) is not None for name in found.__struct_fields__)
    at = found.at  # type: ignore[attr-defined]
    within = at.count(":") if isinstance(at, str) else 0
    if body.count(b":") != named + within + sum(map(len, rows)) or b"\\" in body:  # a colon that is written \u003a is one too
        _refuse_duplicates(body)
    return found


def _refuse_duplicates(body: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise Fault("malformed", f"the body has {twice!r} twice in one object: which of them is meant?")
        return found

    json.loads(body, object_pairs_hook=unique)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
