"""What the benchmarks share: a measurement in a process of its own, and how results are told.

Imports neither numpy nor MLX, for a child's peak memory begins with its parent's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def fresh(module: str, name: str, **arguments: Any) -> dict[str, Any]:
    """Runs `python -m MODULE NAME JSON`; the last line that it prints is the result."""
    command = [sys.executable, "-m", module, name, json.dumps(arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], form: str = ".3g") -> str:
    """The median, and the lowest and the highest."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def write_result(path: Path | None, result: Any) -> None:
    """A result as a JSON file, where one is asked for."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
