"""Any callable, by its import path `module:attribute`. The version holds the path and a hash of the code, not the code.

The attribute is called with the matrix (n, features) and returns n scores; an object with `predict` is asked by that; a class is made
without arguments first. Modules beside tidemill.toml are found.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill.definitions.load import siblings_of
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


def dump(model: Any, kind: Kind | None, classes: tuple[Class, ...] | None, context: Context) -> Dumped:
    """`model` is the import path."""
    found = imported(str(model), context.directory)
    _function(found, str(model))
    document = {"import": str(model), "source": source_hash(found)}
    kind = kind or "classifier"
    if kind == "classifier":
        classes = classes or (False, True)
    return Dumped("callable.json", json.dumps(document).encode(), kind, classes, options=document)


def load(data: bytes, manifest: Manifest, context: Context) -> CallablePredictor:
    """The callable, if its code is still what it was."""
    document = json.loads(data)
    path = document["import"]
    found = imported(path, context.directory)
    if source_hash(found) != document["source"]:
        raise ModelRefusedError(
            f"the code of {path} is not what it was when {manifest.title} was registered: undo the change, or register "
            f"it anew with `tidemill model register {manifest.model} {path} --service {manifest.service}`"
        )
    return CallablePredictor(_function(found, path))


def imported(path: str, directory: Path) -> Any:
    """What `module:attribute` names. Raises `ModelError`."""
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        raise ModelError(f"{path!r} is no import path: write module:attribute, such as mymodels:score")
    try:
        with siblings_of(directory):
            return operator.attrgetter(attribute)(importlib.import_module(module))
    except ImportError as error:
        raise ModelRefusedError(f"{path} cannot be imported ({error}): install it here, or put the module beside tidemill.toml") from error
    except AttributeError as error:
        raise ModelRefusedError(f"{path} cannot be imported: {error}") from error
    except Exception as error:
        raise ModelRefusedError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def source_hash(found: Any) -> str:
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
