"""Whether what a container runs is alive, by what it says on its metrics port: exit code 0 or 1, and one line that says why not.

    healthy.py stream 9464    # every worker runs, and has told how it is within the last minute
    healthy.py batch 9465     # the process answers
    healthy.py learn 9466     # the same, and it has looked for predictions and labels

A worker that waits for Redis or Kafka is alive: to start it again would help nobody.
"""

from __future__ import annotations

import re
import sys
import time
import urllib.error
import urllib.request

#: In seconds. A large flush, or a server that does not answer, keeps a worker from telling for a while.
_SILENCE = 60.0


def why_not(kind: str, text: str, now: float) -> str:
    """What is wrong, going by the metrics; empty if nothing is."""
    if kind == "batch":
        return "" if re.search(r"^tidemill_batch_runs_total ", text, re.MULTILINE) else "no metrics of batch"
    if kind == "learn":
        return "" if re.search(r"^tidemill_learner_waiting_predictions[{ ]", text, re.MULTILINE) else "no metrics of a learner"
    up = _by_worker(text, "tidemill_worker_up")
    told = _by_worker(text, "tidemill_worker_status_timestamp_seconds")
    if not up:
        return "no metrics of workers"
    for worker, value in sorted(up.items()):
        if value != 1:
            return f"worker {worker} does not run"
        if now - told.get(worker, 0.0) > _SILENCE:
            return f"worker {worker} has said nothing for {now - told.get(worker, 0.0):.0f} s"
    return ""


def _by_worker(text: str, name: str) -> dict[str, float]:
    return {worker: float(value) for worker, value in re.findall(rf'^{name}{{worker="(\d+)"}} (\S+)$', text, re.MULTILINE)}


def main(kind: str, port: str) -> int:
    """The exit code."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{int(port)}/metrics", timeout=4) as answer:
            said = why_not(kind, answer.read().decode(), time.time())
    except (urllib.error.URLError, OSError) as error:
        said = f"no answer on port {port}: {error}"
    print(said or "healthy")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
