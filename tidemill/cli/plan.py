"""`tidemill plan`: what `apply` would change. How a plan is shown, for `apply` too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from tidemill.cli.options import SET_UP, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output
from tidemill.cli.shown import counted, number, size

if TYPE_CHECKING:
    from tidemill.plan import Plan, ViewChange

_SIGNS = {"added": ("+", "green"), "new": ("+", "green"), "removed": ("-", "red"), "retired": ("-", "red"), "unchanged": (" ", "")}
_CHANGED = ("~", "yellow")
#: Features are listed up to here, then counted.
_LISTED = 12


def register(app: typer.Typer) -> None:
    """Put `plan` on the app."""
    app.command(epilog=examples("tidemill plan", "tidemill plan --json | jq .missing"), rich_help_panel=SET_UP)(plan)


def plan(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Show what `apply` would change, and change nothing.

    Which views and features come, change or go; which of them are missing until a batch run has folded their history; how much an
    entity can take in each view.

    JSON: version, differs, views, sources, services, sizes, warnings, removed, invalidated, missing.
    """
    from tidemill.plan import compare

    env, out = environment(project), Output(json=json)
    found = compare(env.applied(), env.planned())
    out.document(document(found))
    show(out, found)
    if found.differs:
        out.say(f"{_summary(found)}; run `tidemill apply` to put this in force")
    else:
        out.say(f"nothing to apply: version {found.version} is what the definitions say")


def document(plan: Plan) -> dict[str, Any]:
    """A plan as JSON."""
    return {**asdict(plan), "removed": plan.removed, "invalidated": plan.invalidated, "missing": plan.missing}


def show(out: Output, plan: Plan) -> None:
    """A plan for people: only what changes, then sizes and warnings."""
    for source in plan.sources:
        _line(out, source.kind, f"source {source.name}", source.kind if source.kind not in _SIGNS else "", source.details)
    for view in plan.views:
        if view.kind != "unchanged":
            _view(out, view)
    for service in plan.services:
        if service.kind == "changed":
            parts = [*(f"+ {f}" for f in service.added), *(f"- {f}" for f in service.removed)]
            _line(out, service.kind, f"service {service.name}", "", parts)
        else:
            _line(out, service.kind, f"service {service.name}", counted(len(service.added or service.removed), "feature"), ())
    if plan.differs:
        out.say()
    rows = [(s.view, number(s.features), number(s.tiles), size(s.bytes), s.largest) for s in plan.sizes]
    columns = ("view", "features", "tiles", "bytes", "most of it")
    out.table(columns, rows, numbers=("features", "tiles", "bytes"), title="At most, per entity")
    if rows:
        out.say()
    for warning in plan.warnings:
        out.warn(warning)
    if plan.missing:
        one = len(plan.missing) == 1
        them = plan.missing[0] if one else f"{len(plan.missing)} features"
        out.warn(f"{them} will be missing until `tidemill batch` has folded the history that is archived")


def _view(out: Output, view: ViewChange) -> None:
    _line(out, view.kind, f"view {view.name}", counted(len(view.features), "feature") if view.kind in _SIGNS else "", view.details)
    kinds = {"added": "", "changed": "means something else", "recounted": "counted anew", "removed": ""}
    for kind, said in kinds.items():
        names = [f.name for f in view.features if f.kind == kind]
        for name in names[:_LISTED]:
            missing = any(f.missing for f in view.features if f.name == name)
            _line(out, kind, name, ", ".join(filter(None, [said, "missing until batch" if missing else ""])), (), indent=4)
        if len(names) > _LISTED:
            _line(out, kind, f"... and {len(names) - _LISTED} more", said, (), indent=4)
    for bundle in view.bundles:
        if bundle.kind != "kept" or len(view.bundles) > 1:
            _line(out, "unchanged" if bundle.kind == "kept" else bundle.kind, f"bundle {bundle.id}", bundle.kind, (), indent=4)


def _line(out: Output, kind: str, name: str, said: str, details: Sequence[str], indent: int = 0) -> None:
    sign, style = _SIGNS.get(kind, _CHANGED)
    out.say(Text.assemble(" " * indent, (f"{sign} {name}", style), (f"  {said}" if said else "", "dim")))
    for detail in details:
        out.say(Text.assemble(" " * (indent + 4), (detail, "dim")))


def _summary(plan: Plan) -> str:
    """How much changes, in a few words."""
    kinds = [f.kind for v in plan.views for f in v.features]
    said = {"added": "to add", "changed": "to change", "recounted": "to count anew", "removed": "to remove"}
    parts = [f"{counted(kinds.count(kind), 'feature')} {how}" for kind, how in said.items() if kind in kinds]
    return ", ".join(parts) or "no feature changes, only details do"
