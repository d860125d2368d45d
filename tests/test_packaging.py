"""What is installed, under which names, and with what: the wheel, the apps' one name, the dependencies and their lock."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tidemill import apps
from tidemill.errors import TidemillError

ROOT = Path(__file__).resolve().parents[1]
APPS = ("backfill", "batch", "serving", "streaming")
CODE = ("tidemill", *APPS)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


CORE = {_name(requirement) for requirement in PROJECT["dependencies"]}
EXTRAS = {extra: {_name(requirement) for requirement in listed} for extra, listed in PROJECT["optional-dependencies"].items()}
# What a user may be asked to install; `dev` and `bench` are for those who work on tidemill.
USER_EXTRAS = set().union(*(names for extra, names in EXTRAS.items() if extra not in {"dev", "bench"}))


def _sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import that runs: those under `if TYPE_CHECKING:` do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module:
                yield node.lineno, node.module.partition(".")[0]
        else:
            yield from _imports(node)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    return Path(built)


def test_a_wheel_adds_nothing_but_tidemill_to_site_packages(wheel: Path) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"tidemill"}


def test_a_wheel_holds_every_module_and_the_marker_of_its_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {path for path, _ in _sources("tidemill")} | {f"tidemill/apps/{path}" for path, _ in _sources(*APPS)}
    assert expected | {"tidemill/py.typed"} <= names


def test_an_app_has_the_same_name_in_a_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import tidemill.apps.batch, tidemill.apps.streaming as streaming\n"
        "print(streaming.__name__, streaming.__file__, len(sys.modules['tidemill.apps'].__path__), sep='\\n')"
    )
    lines = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == ["tidemill.apps.streaming", str(tmp_path / "tidemill/apps/streaming/__init__.py"), "1"]


@pytest.mark.parametrize("app", APPS)
def test_an_app_has_the_same_name_in_a_checkout(app: str) -> None:
    module = apps.load(app)
    assert module.__name__ == f"tidemill.apps.{app}"
    assert module.__file__ == str(ROOT / app / "__init__.py")


def test_nobody_imports_an_app_under_a_second_name() -> None:
    found = [
        f"{path}:{line} imports {name}: import tidemill.apps.{name}, or relatively inside {name}"
        for path, tree in _sources(*CODE, "tests", "benchmarks", "examples", "docs")
        for line, name in _imports(tree)
        if name in APPS
    ]
    assert not found, "\n".join(found)


def test_an_app_without_its_packages_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setattr(apps.load("streaming"), "__path__", [str(tmp_path)])
    with pytest.raises(TidemillError, match=r"needs the package a_package_that_nobody_has.*pip install 'tidemill\[stream\]'"):
        apps.load("streaming.needy")


def test_a_module_that_does_not_exist_is_not_blamed_on_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        apps.load("streaming.no_such_module")


def test_the_code_imports_only_what_the_project_declares() -> None:
    distributions = packages_distributions()
    found = [
        f"{path}:{line} imports {name}"
        for path, tree in _sources(*CODE)
        for line, name in _imports(tree)
        if name not in sys.stdlib_module_names and name != "tidemill"
        if not {_name(distribution) for distribution in distributions.get(name, [name])} & (CORE | USER_EXTRAS)
    ]
    assert not found, "\n".join(found)


def test_importing_the_library_needs_no_extra() -> None:
    """In a process where every package of an extra is missing."""
    modules = [module for module, names in packages_distributions().items() if {_name(name) for name in names} & (USER_EXTRAS - CORE)]
    library = sorted(path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path, _ in _sources("tidemill"))
    # A module of the command line that is called __main__ would run; the adapters of servers are imported for their URLs alone.
    adapters = ("tidemill.online.redis", "tidemill.offline.bucket", "tidemill.offline.s3")
    adapters += ("tidemill.predictions.postgres",)
    wanted = [name for name in library if not name.endswith("__main__") and not name.startswith(adapters)]
    program = (
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({modules!r}))\nfor name in {wanted!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_dependency_earns_its_place_in_one_line() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, flags=re.MULTILINE))
    assert listed == CORE.union(*EXTRAS.values())


def test_every_dependency_is_locked_with_hashes_and_without_addresses() -> None:
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(?:.*?) \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, flags=re.MULTILINE))
    assert CORE.union(*EXTRAS.values()) <= set(locked)
    for path in (ROOT / "requirements").iterdir():
        assert not re.search(r"://|--index|--find-links|--trusted-host|@ file| /", path.read_text()), path.name


def test_the_examples_in_the_docstrings_of_the_apps_run() -> None:
    """pytest would collect the apps' files under their folders' names, a second time; the library's examples it runs itself."""
    for app in APPS:
        package = apps.load(app)
        below = (found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
        for module in (package.__name__, *(name for name in below if not name.endswith("__main__"))):
            result = doctest.testmod(importlib.import_module(module))
            assert result.failed == 0, module
