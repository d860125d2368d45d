"""Names: which are allowed, and which one was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from tidemill.errors import DefinitionError

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_name(name: object, what: str) -> str:
    """`name` itself, if it is an identifier of ASCII letters, digits and underscores. Raises `DefinitionError`.

    >>> check_name("origin_departures", "a view's name")
    'origin_departures'
    """
    if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
        raise DefinitionError(f"{what} must be letters, digits and underscores, not beginning with a digit; got {name!r}")
    return name


def suggestion(name: str, known: Iterable[str]) -> str:
    """The hint that ends an error about an unknown name: the near matches, else all there is (at most 12).

    >>> suggestion("amuont", ["amount", "origin"]), suggestion("x", [])
    ("did you mean 'amount'?", 'there are none')
    """
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or [n for n in names if n.lower() == name.lower()]
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    if not names:
        return "there are none"
    return f"there are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
