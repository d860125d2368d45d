"""Environments of their own for peers whose dependencies are not ours: made once, below build/peers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
#: What was measured; a newer one may be faster or slower.
REQUIREMENTS = {"quix": ("quixstreams==3.28.1", "redis==8.1.0", "hiredis==3.5.0"), "feast": ("feast[redis]==0.67.0",)}


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment, which is made if it is not there; that takes a minute or two."""
    folder = _ROOT / "build" / "peers" / peer
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]], check=True, stdout=sys.stderr)
        done.touch()
    return str(python)
