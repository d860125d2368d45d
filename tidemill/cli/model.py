"""`tidemill model`: register, list, show, promote and roll back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from tidemill.cli.options import (
    LOOK,
    FallbackOption,
    JsonOption,
    MaxMissingOption,
    ProjectOption,
    ThresholdOption,
    examples,
    project_directory,
)
from tidemill.cli.output import Output
from tidemill.cli.shown import shortened, size

if TYPE_CHECKING:
    from tidemill.models.journal import Entry
    from tidemill.models.manifest import Manifest
    from tidemill.models.registry import Models

NameArgument: TypeAlias = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]
ByOption: TypeAlias = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who does it, for the journal. It is never guessed.")]
WhyOption: TypeAlias = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Why, for the journal.")]


def register(app: typer.Typer) -> None:
    """Put `model` and its commands on the app."""
    group = typer.Typer()
    group.callback(invoke_without_command=True, epilog=examples("tidemill model"))(model)
    group.command(
        "register",
        epilog=examples(
            "tidemill model register delay model.skops --service delay_v1 --by ann",
            "tidemill model register delay mymodels:score --service delay_v1 --threshold 0.3",
            "tidemill model register delay model.onnx --service delay_v1 --fill delays__dep_delay_mean_1h=0",
        ),
    )(register_model)
    group.command("list", epilog=examples("tidemill model list", "tidemill model list delay"))(list_models)
    group.command("show", epilog=examples("tidemill model show delay", "tidemill model show delay@challenger"))(show)
    group.command(
        "promote",
        epilog=examples(
            "tidemill model promote delay 3 --by ann --why 'better on every carrier'", "tidemill model promote delay 4 --as challenger"
        ),
    )(promote)
    group.command("rollback", epilog=examples("tidemill model rollback delay --by ann --why 'scores look odd'"))(rollback)
    app.add_typer(group, name="model", rich_help_panel=LOOK)


def model(context: typer.Context) -> None:
    """Keep models: versions, which of them serves, and who decided that. Alone: list them."""
    if context.invoked_subcommand is None:
        list_models()


def register_model(
    name: NameArgument,
    what: Annotated[str, typer.Argument(metavar="FILE", help="A .skops, .onnx or LightGBM .txt file, or module:attribute.")],
    service: Annotated[str, typer.Option("--service", metavar="SERVICE", help="The feature service that it reads.")],
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", metavar="FEATURE", help="A column of its matrix; repeat, in its order. Default: the service's."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="classifier or regressor, where the file does not say.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option("--positive", metavar="CLASS", help="The class whose probability is the score. Default: the second.")
    ] = None,
    threshold: ThresholdOption = None,
    fill: Annotated[
        list[str] | None, typer.Option("--fill", metavar="FEATURE=NUMBER", help="What replaces a null of this feature; may be repeated.")
    ] = None,
    fallback: FallbackOption = None,
    max_missing: MaxMissingOption = None,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="What it is, for people.")] = "",
    by: ByOption = None,
    why: WhyOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Keep a trained model as a new version. It serves nobody before it is promoted.

    It is tried on rows of nulls, zeros and ones first, and refused where it does not score them.

    JSON: the version's manifest.
    """
    if kind not in (None, "classifier", "regressor"):
        raise typer.BadParameter(f"--kind is classifier or regressor; got {kind!r}")
    options: dict[str, Any] = {"features": feature or None, "kind": kind, "threshold": threshold, "fill": _fill(fill or [])}
    options |= {"fallback": fallback_of(fallback), "max_missing": max_missing, "description": description, "by": by, "why": why}
    models, out = _models(project), Output(json=json)
    model = what if ":" in what else Path(what)
    made = models.register(name, model, service=service, positive=positive, **options)
    out.document(_document(made))
    out.say(f"registered {made.title}: a {made.kind} of {len(made.features)} features of {made.service}, {size(made.artifact.size)}")
    out.say(f"tidemill model promote {made.model} {made.version}", style="dim")


def list_models(
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this one.")] = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """List models and their versions, with what they serve as.

    JSON: models, each with name, aliases and versions (their manifests).
    """
    models, out = _models(project), Output(json=json)
    documents, rows = [], []
    for each in [name] if name is not None else models.names():
        aliases = models.aliases(each)
        manifests = models.list(each)
        documents.append({"name": each, "aliases": aliases, "versions": [_document(m) for m in manifests]})
        for found in manifests:
            serves = ", ".join(a for a, v in aliases.items() if v == found.version)
            metrics = ", ".join(f"{n} {v:.4g}" for n, v in list(found.metrics.items())[:3] if isinstance(v, (int, float)))
            rows.append((each, found.version, serves, found.framework, found.service, found.created_at[:19].replace("T", " "), metrics))
    out.document({"models": documents})
    out.table(("model", "version", "serves as", "from", "service", "created", "metrics"), rows)
    if not rows:
        out.say("no models yet: see `tidemill model register --help` and `tidemill train --help`")


def show(
    reference: Annotated[str, typer.Argument(metavar="MODEL", help="A model, model@alias or model@version. Default: its champion.")],
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Print what a version is, whether it can be loaded here, and the journal of its model.

    JSON: manifest, aliases, journal (its last 100 entries), problem (null, or why it cannot be loaded here).
    """
    from tidemill.errors import ModelRefusedError, NotFoundError
    from tidemill.models.journal import CHAMPION

    models, out = _models(project), Output(json=json)
    name, at, _ = reference.partition("@")
    aliases = models.aliases(name)
    if not at and CHAMPION not in aliases:
        reference = f"{name}@{models.versions(name)[-1]}"
    found = models.manifest(*models.resolve(reference))
    problem: str | None = None
    try:
        models.load(f"{name}@{found.version}")
    except (ModelRefusedError, NotFoundError) as error:
        problem = str(error)
    history = models.journal(name).history(100)
    out.document({"manifest": _document(found), "aliases": aliases, "journal": [_line(e) for e in history], "problem": problem})
    out.table(("", ""), _facts(found, aliases), title=found.title)
    out.say()
    out.table(("feature", "type", "null becomes"), [(f.name, f.type, str(found.fill.get(f.name, "NaN"))) for f in found.features])
    out.say()
    moves = [(e.at[:19].replace("T", " "), _moved(e), e.by or "-", shortened(e.why or "", 60)) for e in history[-10:]]
    out.table(("when", "what", "by", "why"), moves)
    if problem is not None:
        out.say()
        out.warn(f"it cannot be loaded here: {problem}")


def promote(
    name: NameArgument,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The version.")],
    alias: Annotated[str, typer.Option("--as", metavar="ALIAS", help="champion, or challenger.")] = "champion",
    by: ByOption = None,
    why: WhyOption = None,
    project: ProjectOption = None,
    json: JsonOption = False,
) -> None:
    """Make a version champion: scorers take it within seconds. It is loaded and tried first.

    JSON: the journal's entry: n, at, action, version, alias, by, why, aliases.
    """
    entry = _models(project).promote(name, version, alias=alias, by=by, why=why)
    _report(Output(json=json), name, entry)


def rollback(
    name: NameArgument, by: ByOption = None, why: WhyOption = None, project: ProjectOption = None, json: JsonOption = False
) -> None:
    """Make the version that was champion before champion again. Once more, and it is the one before that.

    JSON: as of promote.
    """
    _report(Output(json=json), name, _models(project).rollback(name, by=by, why=why))


# ---- inside ---------------------------------------------------------------------------------------------------------------------


def _models(project: Path | None) -> Models:
    from tidemill.client import FeatureStore

    return FeatureStore(project_directory(project)).models


def _report(out: Output, name: str, entry: Entry) -> None:
    out.document(_line(entry))
    rest = ", ".join(f"{alias} {version}" for alias, version in entry.aliases.items() if alias != entry.alias)
    out.say(f"{name} {entry.version} is {entry.alias}" + (f" ({rest})" if rest else ""))


def _document(manifest: Manifest) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(manifest)
    return found


def _line(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(entry)


def _moved(entry: Entry) -> str:
    said = {"register": "registered", "promote": f"promoted to {entry.alias}:", "rollback": "rolled back to"}
    return f"{said[entry.action]} {entry.version}"


def _facts(found: Manifest, aliases: dict[str, str]) -> list[tuple[str, str]]:
    serves = ", ".join(a for a, v in aliases.items() if v == found.version) or "nothing"
    libraries = ", ".join(f"{n} {v}" for n, v in found.libraries.items())
    facts = [("serves as", serves), ("service", f"{found.service} ({found.definition})"), ("model", f"{found.framework} {found.kind}")]
    if found.classes is not None:
        facts.append(("score", f"the probability of {found.positive!r} (not {found.negative!r}); that from {found.threshold} on"))
    if found.fallback is not None:
        facts.append(("fallback", f"{found.fallback} with more than {found.max_missing or 0} features missing or stale"))
    facts += [("created", found.created_at[:19].replace("T", " ")), ("made with", libraries or "-")]
    facts.append(("file", f"{found.artifact.file}, {size(found.artifact.size)}, SHA-256 {found.artifact.sha256[:16]}..."))
    facts += [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in found.metrics.items()]
    facts += [(f"data {name}", str(value)) for name, value in found.data.items()]
    if found.description:
        facts.append(("description", shortened(found.description, 80)))
    return facts


def _fill(given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        feature, equals, value = text.partition("=")
        column = feature.replace(":", "__", 1)
        if column in found:
            raise typer.BadParameter(f"--fill is given twice for {column}")
        try:
            found[column] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise typer.BadParameter(f"--fill {text!r}: write FEATURE=NUMBER, such as view__mean_1d=0")
    return found


def fallback_of(given: str | None) -> Any:
    """What --fallback says."""
    if given is None or given == "error":
        return given
    try:
        return float(given)
    except ValueError:
        raise typer.BadParameter(f"--fallback is a score such as 0.1, or 'error'; got {given!r}") from None
