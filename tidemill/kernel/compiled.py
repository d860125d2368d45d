"""Loops that Numba compiles: once per machine, where it finds a place to keep them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """A function of one request: it takes microseconds, so it keeps the GIL, which would take longer to get back."""
    return _kept(function, nogil=False)


def compiled_for_threads(function: Callable[..., Any]) -> Any:
    """A function of many rows, that lets other threads go on."""
    return _kept(function, nogil=True)


def _kept(function: Callable[..., Any], *, nogil: bool) -> Any:
    try:
        return njit(cache=True, nogil=nogil)(function)
    except RuntimeError:  # neither beside the code nor below the home can anything be written: compiled anew by each process
        return njit(nogil=nogil)(function)
