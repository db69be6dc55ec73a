"""How soon the package answers: import, --help, --version, and what they import."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEAVY = ("mlx", "torch", "transformers", "rich", "pyarrow", "PIL", "numpy")
_IMPORT = "import time; t = time.perf_counter(); import aim_mlx; print(time.perf_counter() - t)"
_MODULES = """
import sys, contextlib, io
sys.argv = ["aim-mlx", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    import aim_mlx
    if sys.argv[1:]:
        from aim_mlx.cli.main import main
        main()
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def startup(repeats: int) -> dict[str, Any]:
    """Seconds of each start, in fresh processes after one that fills the byte-code cache."""
    script = shutil.which("aim-mlx", path=str(Path(sys.executable).parent))
    if script is None:
        raise SystemExit("aim-mlx is not installed in this environment: pip install -e .")
    results: dict[str, Any] = {}
    for name, arguments in {"import": [], "--help": ["--help"], "--version": ["--version"]}.items():
        command = [script, *arguments] if arguments else [sys.executable, "-c", _IMPORT]
        _run(command)
        loaded = _run([sys.executable, "-c", _MODULES, *arguments])[0].split()
        results[name] = {
            "seconds": [_seconds(command, in_process=not arguments) for _ in range(repeats)],
            "heavy_modules": [module for module in HEAVY if module in loaded],
        }
    return results


def _seconds(command: list[str], in_process: bool) -> float:
    """Wall time of a process or, for an import, what the process says of it."""
    output, seconds = _run(command)
    return float(output) if in_process else seconds


def _run(command: list[str]) -> tuple[str, float]:
    started = time.perf_counter()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return output, time.perf_counter() - started
