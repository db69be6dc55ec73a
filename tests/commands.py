"""`aim-mlx` run in this process, or started as a process of its own."""

import subprocess
import sys
from typing import Any

import pytest

from aim_mlx.cli import main as cli


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = cli._run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def start(*arguments: object, before: str = "", **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own, after some lines of Python."""
    code = f"{before}\nfrom aim_mlx.cli.start import main; main()"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, **(pipes | options))
