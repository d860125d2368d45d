"""Which adapter a model needs, and what is installed here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tidemill.errors import ModelError, ModelRefusedError
from tidemill.models.manifest import Manifest
from tidemill.models.predictor import Adapter

#: Framework to what has to be installed for it.
NEEDS = {"sklearn": "scikit-learn skops", "onnx": "onnxruntime", "lightgbm": "lightgbm", "river": "river", "python": ""}
_SUFFIXES = {".skops": "sklearn", ".onnx": "onnx", ".txt": "lightgbm", ".lgb": "lightgbm"}
_PICKLES = (".pkl", ".pickle", ".joblib")


def adapter(framework: str) -> Adapter:
    """The adapter's module. Raises `ModelRefusedError` for a framework that this tidemill does not know."""
    if framework not in NEEDS:
        raise ModelRefusedError(f"there is no framework {framework!r}; there are {', '.join(NEEDS)}")
    return importlib.import_module(f"tidemill.models.adapters.{framework}")


def framework_of(model: Any) -> str:
    """Which framework a live model, a file's path or an import path is of. Raises `ModelError`."""
    if isinstance(model, Path) or (isinstance(model, str) and ":" not in model):
        suffix = Path(model).suffix.lower()
        if suffix in _PICKLES:
            raise ModelError(
                f"{model} is a pickle, which runs code when it is read: load it where you trust it, and register the model itself from "
                "Python, with FeatureStore.models.register"
            )
        if suffix not in _SUFFIXES:
            raise ModelError(f"{model}: a model's file ends in {', '.join(_SUFFIXES)}; a callable is written module:attribute")
        return _SUFFIXES[suffix]
    if isinstance(model, str):
        return "python"
    roots = {c.__module__.partition(".")[0] for c in type(model).__mro__}
    for framework in ("lightgbm", "river", "sklearn", "onnx"):
        if framework in roots:
            return framework
    raise ModelError(
        f"{type(model).__name__} is no model that tidemill knows: it takes fitted models of scikit-learn, LightGBM, River and ONNX, and "
        "any callable by its import path, such as 'mymodels:score'"
    )


def missing_library(framework: str, error: ModuleNotFoundError) -> ModelError:
    """The error for a library that is not installed."""
    return ModelRefusedError(f"a model of {framework} needs {error.name}, which is not installed here: pip install {NEEDS[framework]}")


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of these distributions."""
    return {name: metadata.version(name) for name in names}


def check_libraries(manifest: Manifest) -> None:
    """Raise `ModelRefusedError` where a library that the artifact is tied to has another version here."""
    check_versions(manifest.title, {name: manifest.libraries.get(name, "of an unknown version") for name in manifest.pinned})


def check_versions(what: str, libraries: Mapping[str, str]) -> None:
    """Raise `ModelRefusedError` where what is tied to these libraries finds others here: major and minor version count."""
    for name, made in libraries.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ModelRefusedError(
                f"{what} was made with {name} {made}, which is not installed here: pip install '{name}=={made}'"
            ) from None
        if made.split(".")[:2] != here.split(".")[:2]:
            raise ModelRefusedError(
                f"{what} was made with {name} {made}, and {here} is installed, which may answer otherwise: "
                f"pip install '{name}=={'.'.join(made.split('.')[:2])}.*', or train it again with {here}"
            )
