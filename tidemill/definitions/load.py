"""Reading a definitions file: a Python module, run under a name of its own, that leaves nothing behind but its definitions."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import linecache
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

from tidemill.definitions.catalog import Definitions
from tidemill.definitions.entity import Entity
from tidemill.definitions.on_demand import OnDemand
from tidemill.definitions.service import FeatureService
from tidemill.definitions.source import Source
from tidemill.definitions.view import FeatureView
from tidemill.errors import DefinitionError, NotFoundError, TidemillError

#: The search path and the table of modules are the whole process's.
_one_at_a_time = threading.RLock()
_KINDS = (Source, Entity, FeatureView, FeatureService, OnDemand)


def load_definitions(path: str | os.PathLike[str]) -> Definitions:
    """Run the Python file at `path`, and collect the definitions that it leaves in module-level names, lists, tuples and dicts.

    The file may import modules that lie beside it. They are loaded afresh each time, so a changed file is seen, and a file of the same
    name in another project does not get in the way; the search path is as before afterwards.

    Raises `NotFoundError` when there is no such file, and `DefinitionError` (or the error of the definition itself), naming the file
    and the line, when it cannot be run or its definitions do not fit together.
    """
    file = Path(path).absolute()
    module = _run(file, _compiled(file))
    try:
        return Definitions.collect(_instances(vars(module)))
    except TidemillError as error:
        raise type(error)(f"{file}: {error}") from None


def _compiled(file: Path) -> CodeType:
    try:
        return compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except FileNotFoundError:
        fix = "create it, or name another under [project] definitions in tidemill.toml"
        raise NotFoundError(f"the definitions file {file} does not exist; {fix}") from None
    except OSError as error:
        raise DefinitionError(f"the definitions file {file} cannot be read: {error.strerror or error}") from None
    except SyntaxError as error:
        raise _syntax_error(error, file) from None
    except ValueError as error:
        raise DefinitionError(f"{file}: not a Python file ({error})") from None


def _run(file: Path, code: CodeType) -> ModuleType:
    name = f"_tidemill_definitions_{hashlib.blake2b(str(file).encode(), digest_size=8).hexdigest()}"
    module = ModuleType(name)
    module.__file__ = str(file)
    linecache.checkcache(str(file))  # the hash of an on-demand feature is that of its text as it is now
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        with siblings_of(file.parent):
            exec(code, vars(module))  # noqa: S102 - the user's own code is what this is for
    except SyntaxError as error:  # of a module that the file imports
        del sys.modules[name]
        raise _syntax_error(error, file) from None
    except TidemillError as error:
        del sys.modules[name]
        raise type(error)(f"{_place(error, file)}: {error}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's code may raise anything
        del sys.modules[name]
        raise DefinitionError(f"{_place(error, file)}: {type(error).__name__}: {error}") from None
    return module


@contextlib.contextmanager
def siblings_of(directory: Path) -> Iterator[None]:
    """Lets modules beside the file be imported, and takes them and the search path back afterwards. One thread at a time does so."""
    with _one_at_a_time:
        yield from _siblings_of(directory)


def _siblings_of(directory: Path) -> Iterator[None]:
    search_path, loaded, no_bytecode = list(sys.path), set(sys.modules), sys.dont_write_bytecode
    sys.path.insert(0, str(directory))
    sys.dont_write_bytecode = True  # cached byte code is matched by whole seconds: a quick edit would not be seen
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = search_path
        sys.dont_write_bytecode = no_bytecode
        for name in set(sys.modules) - loaded:
            if lies_beside(sys.modules[name], directory):
                del sys.modules[name]


def lies_beside(module: ModuleType, directory: Path) -> bool:
    """Whether a module is the project's own: in its directory, but not in an environment installed there."""
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    if not isinstance(file, str) or not Path(file).is_relative_to(directory):
        return False
    return not {"site-packages", "dist-packages"} & set(Path(file).relative_to(directory).parts)


def _instances(namespace: dict[str, object]) -> list[object]:
    """The definitions in a module's names and in the lists, tuples and dicts there, each object once, in order."""
    found: dict[int, object] = {}

    def visit(value: object, depth: int) -> None:
        if isinstance(value, _KINDS):
            found[id(value)] = value
        elif depth < 3 and isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                visit(item, depth + 1)

    for name, value in namespace.items():
        if not name.startswith("__"):
            visit(value, 0)
    return list(found.values())


def _place(error: BaseException, file: Path) -> str:
    """The file and line of the project's own code that was running last."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename, file)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(file)


def _is_own(filename: str, file: Path) -> bool:
    path = Path(filename)
    return path == file or (path.is_relative_to(file.parent) and "site-packages" not in path.parts)


def _syntax_error(error: SyntaxError, file: Path) -> DefinitionError:
    return DefinitionError(f"{error.filename or file}:{error.lineno or 1}: {type(error).__name__}: {error.msg}")
