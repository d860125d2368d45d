"""What the documents say, held to the code. (Their examples with >>> run by themselves, wherever pytest collects *.md.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from tidemill.applied import NOTHING_APPLIED, apply_definitions
from tidemill.cli.app import build
from tidemill.definitions import load_definitions, resolve_features

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _anchors(document: Path) -> set[str]:
    """The anchors that a forge gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), f"{document.name} links to {target}"
        if anchor:
            assert anchor in _anchors(found), f"{document.name} links to {target}, and there is no such heading"


def test_the_definitions_in_the_readme_can_be_applied(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```python\n(import .+?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "features.py").write_text(text, encoding="utf-8")
    definitions = load_definitions(tmp_path / "features.py")
    applied = apply_definitions(definitions, NOTHING_APPLIED, 4, set())
    wanted = resolve_features("delay_v1", definitions)
    assert {"origin_departures__dep_delay_mean_30m", "long_haul_late_share"} <= set(wanted.columns)
    assert list(applied.services) == ["delay_v1"]


def test_every_command_in_the_documents_exists() -> None:
    known = set(get_command(build()).commands)
    for document in DOCUMENTS:
        used = re.findall(r"(?:^ {4,}|`)tidemill ([a-z][a-z-]*)", document.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(used) <= known, document


def test_every_picture_has_a_title_and_a_description() -> None:
    pictures = sorted((ROOT / "docs").glob("*.svg"))
    assert pictures
    for picture in pictures:
        text = picture.read_text(encoding="utf-8")
        assert "<title" in text, picture
        assert "<desc" in text, picture
