"""Any callable, by its import path `module:attribute`. The version holds the path and a hash of the code, not the code.

The attribute is called with the matrix (n, features) and returns n scores; an object with `predict` is asked by that; a class is made
without arguments first. Modules beside tidemill.toml are found.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import operator
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tidemill.definitions.load import lies_beside, siblings_of
from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.manifest import Class, Kind, Manifest
from tidemill.models.predictor import Context, Dumped, Matrix


class CallablePredictor:
    """Asks a function."""

    def __init__(self, function: Callable[[Matrix], Any]) -> None:
        self._function = function

    def predict(self, matrix: Matrix) -> Matrix:
        scores: Matrix = self._function(matrix)
        return scores


class Imported(NamedTuple):
    """What an import path names, and a hash of its text."""

    found: Any
    source: str


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:
    """`model` is the import path."""
    made = imported(str(model), context.directory)
    _function(made.found, str(model))
    document = {"import": str(model), "source": made.source}
    kind = kind or "classifier"
    if kind == "classifier":
        classes = classes or (False, True)
    return Dumped("callable.json", json.dumps(document).encode(), kind, classes, options=document)


def load(data: bytes, manifest: Manifest, context: Context) -> CallablePredictor:
    """The callable, if its code is still what it was."""
    document = json.loads(data)
    path = document["import"]
    made = imported(path, context.directory)
    if made.source != document["source"]:
        raise ModelRefusedError(
            f"the code of {path} is not what it was when {manifest.title} was registered: undo the change, or register "
            f"it anew with `tidemill model register {manifest.model} {path} --service {manifest.service}`"
        )
    return CallablePredictor(_function(made.found, path))


def imported(path: str, directory: Path) -> Imported:
    """What `module:attribute` names. A module beside tidemill.toml is run anew, so that its code is the text that is hashed.

    Raises `ModelError`.
    """
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ModelError(f"{path!r} is no import path: write module:attribute, such as mymodels:score")
    try:
        with siblings_of(directory), _anew(module, directory):
            found = operator.attrgetter(attribute)(importlib.import_module(module))
            return Imported(found, _source_hash(found))  # here, where its module can still be found: a class is looked up there
    except ImportError as error:
        raise ModelRefusedError(f"{path} cannot be imported ({error}): install it here, or put the module beside tidemill.toml") from error
    except AttributeError as error:
        raise ModelRefusedError(f"{path} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise ModelRefusedError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _anew(module: str, directory: Path) -> Iterator[None]:
    """Lets a module of the project be run once more where this process has imported it before, and puts that one back afterwards.

    The text may have changed since: what is in memory would be taken for what is in the file, and score otherwise.
    """
    parts = module.split(".")
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    before = {name: sys.modules[name] for name in names if name in sys.modules and lies_beside(sys.modules[name], directory)}
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.modules.update(before)


def _source_hash(found: Any) -> str:
    """A hash of the text of a function, or of an object's class; not of what it calls."""
    target = found if inspect.isroutine(found) or inspect.isclass(found) else type(found)
    try:
        text = inspect.getsource(target)
    except (OSError, TypeError):
        text = getattr(target, "__qualname__", repr(target))
    return hashlib.sha256(text.encode()).hexdigest()


def _function(found: Any, path: str) -> Callable[[Matrix], Any]:
    made = found() if inspect.isclass(found) else found
    function = getattr(made, "predict", made)
    if not callable(function):
        raise ModelError(f"{path} is a {type(made).__name__}, which can neither be called nor has a method predict")
    return function
