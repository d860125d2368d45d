"""`tidemill init`: a project that runs as it stands."""

from __future__ import annotations

import datetime as dt
import json as json_format
import random
import shlex
from pathlib import Path
from typing import Annotated

import typer

from tidemill.cli.options import SET_UP, JsonOption, examples
from tidemill.cli.output import Output
from tidemill.errors import TidemillError

_TOML = """\
[project]
name = "{name}"
definitions = "features.py"

[online]
# Values and positions that requests read. SQLite needs no server.
url = "sqlite:///.tidemill/online.db"

[offline]
# The registry of definitions, the archive of events, and daily partials: plain files and Parquet. In a bucket: s3://bucket/prefix
url = ".tidemill/offline"

[stream]
workers = 1
"""

_FEATURES = '''\
"""What this project computes. Change it, then: tidemill plan, tidemill apply."""

import numpy as np

import tidemill as tm

# Where events come from: an append-only log. Here JSON lines; every line that is added to data/payments/ is an event.
payments = tm.Source(
    "payments",
    schema={"payment_id": int, "card": str, "merchant": str, "amount": float, "paid_at": tm.Timestamp},
    timestamp="paid_at",  # when it happened: this is what windows look at, however late an event arrives
    event_id="payment_id",
    path="data/payments/*.jsonl",
)

# What is counted, of whom, over which windows. Features are named column_function_window: amount_mean_1d.
card_payments = tm.FeatureView(
    "card_payments",
    source=payments,
    entity=tm.Entity("card"),
    aggregations=[
        tm.count(windows=["1h", "1d", "7d"]),
        tm.sum("amount", windows=["1d", "7d"]),
        tm.mean("amount", windows=["1d", "7d"]),
        tm.max("amount", windows=["7d"]),
        tm.count(where="amount > 100", name="large", windows=["7d"]),
        tm.last("merchant", windows=["7d"]),
    ],
)


# A feature that is computed when it is asked for, from stored features and from the request itself. Always NumPy arrays.
@tm.on_demand(inputs=[card_payments, tm.Request(amount=float)])
def amount_to_usual(amount, amount_mean_7d):
    return np.where(amount_mean_7d > 0, amount / amount_mean_7d, np.nan)


# What one model reads, under one name.
fraud_v1 = tm.FeatureService("fraud_v1", features=[card_payments, amount_to_usual])
'''

_IGNORED = ".tidemill/"
_EVENTS = 3_000
_DAYS = 7


def register(app: typer.Typer) -> None:
    """Put `init` on the app."""
    app.command(epilog=examples("tidemill init shop"), rich_help_panel=SET_UP)(init)


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="The folder to make the project in. Default: this one.")] = Path(),
    json: JsonOption = False,
) -> None:
    """Make a project that runs as it stands: settings, definitions with comments, and a week of events.

    Overwrites nothing. JSON: directory, files, next.
    """
    out = Output(json=json)
    root = directory.absolute()
    contents = {
        "tidemill.toml": _TOML.format(name=_name(root)),
        "features.py": _FEATURES,
        "data/payments/0001.jsonl": _events(dt.datetime.now(dt.UTC)),
    }
    present = [name for name in contents if (root / name).exists()]
    if present:
        raise TidemillError(f"{root / present[0]} is there already, and init overwrites nothing: choose another folder, or remove it")
    try:
        for name, text in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with (root / name).open("x", encoding="utf-8") as file:
                file.write(text)
        _ignore(root / ".gitignore")
    except OSError as error:
        raise TidemillError(f"cannot make a project in {root}: {error.strerror}: {error.filename}") from error
    following = ["tidemill apply", "tidemill stream --once", "tidemill get fraud_v1 card=card_7 amount=80"]
    if root != Path.cwd():
        following.insert(0, f"cd {shlex.quote(str(directory))}")
    out.document({"directory": str(root), "files": [*contents, ".gitignore"], "next": following})
    out.say(f"made a project in {root}: features.py says what it computes. Next:")
    out.say()
    for command in following:
        out.say(f"  {command}", style="cyan")


def _name(root: Path) -> str:
    """A name that TOML takes between quotes."""
    return "".join(c if c.isalnum() or c in "-_ ." else "_" for c in root.resolve().name) or "project"


def _ignore(file: Path) -> None:
    """Adds what tidemill itself writes to the .gitignore, whether there is one or not."""
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    if _IGNORED not in known.splitlines():
        file.write_text(known + ("" if known.endswith("\n") or not known else "\n") + _IGNORED + "\n", encoding="utf-8")


def _events(now: dt.datetime) -> str:
    """A week of payments of twenty cards until `now`, as JSON lines: the same each time, but for the clock. Some arrive hours late."""
    chance = random.Random(7)  # noqa: S311 - made-up payments
    step = dt.timedelta(days=_DAYS) / _EVENTS
    lines = []
    for i in range(_EVENTS):
        at = now - step * (_EVENTS - 1 - i) - dt.timedelta(hours=chance.choice([0] * 19 + [6]))
        event = {
            "payment_id": i + 1,
            "card": f"card_{min(int(chance.paretovariate(0.9)), 20)}",
            "merchant": chance.choice(["grocer", "baker", "books", "petrol", "cinema"]),
            "amount": round(chance.lognormvariate(3.2, 0.9), 2),
            "paid_at": at.isoformat(timespec="milliseconds"),
        }
        lines.append(json_format.dumps(event))
    return "\n".join(lines) + "\n"
