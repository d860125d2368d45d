"""All benchmarks, one after the other, in a table: `python -m benchmarks`, or `make bench`.

Each runs in processes of its own, and never two at once, so that none is disturbed by what another left behind. Takes most of an hour, and
a machine that does nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

BENCHMARKS = ("reads", "folds", "stream", "kafka", "freshness", "redis_reads", "datasets", "backfill", "score", "serve", "learner")
_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run all; the exit code, 1 if one of them failed."""
    console = Console(highlight=False)
    table = Table("command", "result", box=box.SIMPLE)
    failed = False
    for name in BENCHMARKS:
        command = f"python -m benchmarks.{name}"
        with console.status(command):
            done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=_ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            failed = True
            console.print(f"{command} failed:\n{done.stderr}", markup=False)
        for line in done.stdout.splitlines():
            table.add_row(command, line.strip())
    console.print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
