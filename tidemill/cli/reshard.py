"""`tidemill reshard`: another number of shards."""

from __future__ import annotations

from dataclasses import asdict

import typer

from tidemill.cli.options import SET_UP, JsonOption, ProjectOption, environment, examples
from tidemill.cli.output import Output, Progress
from tidemill.cli.shown import counted, span


def register(app: typer.Typer) -> None:
    """Put `reshard` on the app."""
    app.command(epilog=examples("tidemill reshard"), rich_help_panel=SET_UP)(reshard)


def reshard(project: ProjectOption = None, json: JsonOption = False) -> None:
    """Spread all entities over as many shards as tidemill.toml says now (online.shards).

    Folds the whole archive anew, while everything goes on as before; then the workers rebuild the new shards, and until a shard is
    rebuilt its features are missing. May be killed at any instant and run again.

    JSON: before, after, version, bundles, seconds.
    """
    from tidemill.apps import load

    env, out = environment(project), Output(json=json)
    job = load("batch.job")
    with Progress() as shown, job.alone(env, shown) as progress:
        done = load("batch.reshard").reshard(env, progress)
    out.document(asdict(done))
    if done.before == done.after:
        out.say(f"nothing to do: there are {counted(done.after, 'shard')} already; set online.shards in tidemill.toml first")
        return
    out.say(
        f"version {done.version}: {counted(done.after, 'shard')} in the place of {done.before}, {counted(done.bundles, 'bundle')} folded "
        f"in {span(round(done.seconds * 1e6))}; features are missing until running workers have rebuilt their shards"
    )
