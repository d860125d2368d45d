"""`tidemill apply`: put the definitions in force."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.cli.options import SET_UP, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output
from tidemill.cli.plan import document, show
from tidemill.cli.shown import counted
from tidemill.errors import TidemillError

if TYPE_CHECKING:
    from tidemill.plan import Plan


def register(app: typer.Typer) -> None:
    """Put `apply` on the app."""
    app.command(epilog=examples("tidemill apply", "tidemill apply --yes"), rich_help_panel=SET_UP)(apply)


def apply(
    project: ProjectOption = None,
    json: JsonOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Go on where features are removed, or lose what they have counted.")] = False,
) -> None:
    """Put the definitions in force. Running workers pick them up without a restart.

    Asks before it removes a feature, or makes one begin anew; where there is nobody to ask, it needs --yes.

    JSON: applied, and what `tidemill plan --json` says, with the new version.
    """
    from tidemill.plan import compare

    env, out = environment(project), Output(json=json)
    plan = compare(env.applied(), env.planned())
    if not plan.differs:
        out.document({"applied": False, **document(plan)})
        out.say(f"nothing to apply: version {plan.version} is what the definitions say")
        return
    losses = _losses(plan)
    if losses and not yes:
        if json or not sys.stdin.isatty():
            raise TidemillError(f"{losses}: look at it with `tidemill plan`, and say `tidemill apply --yes` if it is meant")
        show(out, plan)
        if not typer.confirm(f"{losses}. Apply?"):
            raise TidemillError("nothing was applied")
    version = env.apply().version
    out.document({"applied": True, **document(plan), "version": version})
    views, features = len(plan.sizes), sum(s.features for s in plan.sizes)
    out.say(f"applied version {version}: {counted(views, 'view')}, {counted(features, 'feature')}{_pending(plan)}")


def _losses(plan: Plan) -> str:
    """What would be lost, in a few words; empty if nothing."""
    said = []
    if plan.removed:
        said.append(f"removes {_named(plan.removed)}")
    if plan.invalidated:
        said.append(f"makes {_named(plan.invalidated)} begin anew")
    return f"this {' and '.join(said)}" if said else ""


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _pending(plan: Plan) -> str:
    return f", {len(plan.missing)} missing until `tidemill batch` has run" if plan.missing else ""
