"""The clients of the service install and import without Polars, NumPy and PyArrow."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What a machine that only asks for scores need not have.
HEAVY = ("polars", "numpy", "pyarrow", "pandas", "xxhash", "rich", "typer", "starlette", "uvicorn", "prometheus_client", "sklearn")
USE = """
import asyncio
import tidemill as tm
from tidemill.errors import ServiceUnavailableError

for client in (tm.ScoringClient("http://127.0.0.1:1", retries=0), tm.ScoringClient("http://127.0.0.1:1", api_key="k", retries=0)):
    try:
        client.get_online_features("s", [{"k": "a"}])
        raise SystemExit("nobody listens there")
    except ServiceUnavailableError:
        pass
    assert client.score("m", [{"k": "a"}], fallback=0.5).score == [0.5]
asking = tm.AsyncScoringClient("http://127.0.0.1:1", retries=0).score("m", [{"k": "a"}], fallback=0.5)
assert asyncio.run(asking).to_dict()["score"] == [0.5]
from tidemill.remote import answers, exchange, rows, wire
"""


def test_clients_work_where_polars_cannot_be_imported() -> None:
    program = f"import sys\nsys.modules.update(dict.fromkeys({HEAVY!r}))\n{USE}\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr


def test_without_httpx_a_client_says_what_to_install() -> None:
    program = "import sys\nsys.modules['httpx'] = None\nimport tidemill as tm\ntm.ScoringClient\ntm.ScoringClient('http://x')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert "TidemillError" in done.stderr
    assert "pip install 'tidemill[client]'" in done.stderr


@pytest.mark.soak
def test_clients_work_in_an_environment_of_their_own(tmp_path: Path) -> None:
    """Downloads: so not among the tests of every day."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(ROOT)], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "httpx", "msgspec"], check=True)
    installed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout
    assert not [name for name in HEAVY if name in installed.split()]
    subprocess.run([python, "-c", USE], check=True, cwd=tmp_path)
