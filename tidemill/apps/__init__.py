"""What runs: `streaming`, `batch`, `backfill` and `serving`, each under one name wherever its code lies.

In a checkout the apps are folders beside `tidemill/`; a wheel holds them in this one, because `streaming` or `batch` are too
common as names for someone else's site-packages. Either way a module of theirs is `tidemill.apps.streaming.worker`, in imports
and in `python -m`, and inside they import relatively. Under a second name a module would be loaded twice: two classes of
the same name, and an `except` that catches the other one.

The library itself never imports an app; the command line loads one by name when it is asked to run it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from tidemill.errors import TidemillError

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[1]

#: The extra of the distribution that the dependencies of an app, or of a part of it, come with.
_EXTRAS = {"serving": "serve", "streaming": "stream", "batch.spark": "spark"}

if not (_HERE / "streaming").is_dir():
    __path__.append(str(_CHECKOUT))


def load(module: str) -> ModuleType:
    """The module `tidemill.apps.<module>`, imported: `load("batch")` or `load("streaming.supervisor")`.

    Raises `TidemillError` where the app needs a package that is not installed.

    >>> load("batch").__name__
    'tidemill.apps.batch'
    """
    try:
        return importlib.import_module(f"{__name__}.{module}")
    except ModuleNotFoundError as error:
        extra = next((extra for part, extra in _EXTRAS.items() if f"{module}.".startswith(f"{part}.")), None)
        missing = (error.name or "").partition(".")[0]
        if extra is None or missing in {"", "tidemill"}:
            raise
        raise TidemillError(
            f"{module} needs the package {missing}, which is not installed: pip install 'tidemill[{extra}]'"
            + (", on Python 3.11 or 3.12, the newest that Bytewax supports" if missing == "bytewax" else "")
        ) from error
