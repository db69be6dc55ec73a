"""Trainings in several processes on this machine, of which one may be killed or stopped.

As a program, `python -m tests.parallel_runs JOB`: `aim-mlx` with a network that trains in seconds,
and a checkpoint after every step.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from aim_mlx.cli import start
from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.pretrain.config import CONFIGS
from aim_mlx.pretrain.trainer import PretrainTrainer
from aim_mlx.training import loop
from tests.pretraining import TINY


def run_all(folder: Path, *jobs: dict[str, Any]) -> list[subprocess.CompletedProcess[str]]:
    """Runs each job as a process of one group. On a busy machine they may take ten minutes."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in jobs]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{s.getsockname()[1]}"] for s in sockets]))
    for each in sockets:
        each.close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel_runs", json.dumps(job)],
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "MLX_RANK": str(rank),
                "MLX_HOSTFILE": str(hosts),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, job in enumerate(jobs)
    ]
    done = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=600)
            done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return done


def _run(arguments: list[str], signals: dict[str, int]) -> None:
    """The command; `signals` says which of them this process sends itself before which step."""
    kind = FinetuneTrainer if arguments[0] == "finetune" else PretrainTrainer
    step = kind.run_step

    def signalled(trainer: Any) -> Any:
        for name, number in signals.items():
            if trainer.step == number:
                os.kill(os.getpid(), signal.Signals[name])
        return step(trainer)

    with (
        mock.patch.dict(CONFIGS, nano=TINY),
        mock.patch.object(loop, "CHECKPOINT_SECONDS", 0),
        mock.patch.object(kind, "run_step", signalled),
        mock.patch.object(sys, "argv", ["aim-mlx", *arguments]),
    ):
        start.main()


if __name__ == "__main__":
    _run(**json.loads(sys.argv[1]))
