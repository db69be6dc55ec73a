"""A step of LoRA on a model of large's size, beside peft in PyTorch: seconds and peak memory.

Each contender is a process of its own, in turn. Weights and pictures are the same random ones, and
the losses must agree.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

SIZES = {"large": (1024, 2816, 24, 8, 14, 224), "small": (384, 1056, 6, 6, 14, 224)}
_CLASSES, _STEPS = 10, 3  # the first step is not timed


def material(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (B, 224, 224, 3) and their classes (B,)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 224, 224, 3), np.float32), rng.integers(0, _CLASSES, count)


def write_model(folder: Path, size: str) -> None:
    """An untrained encoder that both read."""
    from aim_mlx.config import PreprocessConfig, VisionConfig
    from aim_mlx.weights.initial import initial_weights
    from aim_mlx.weights.transformers_folder import save_for_transformers

    config = VisionConfig(*SIZES[size])
    weights = dict(initial_weights(config, 0))
    save_for_transformers(folder, weights, config, PreprocessConfig.hub(224))


def timed(step) -> tuple[float, list[float]]:
    """Seconds of a step, and the losses of all."""
    seconds, losses = [], []
    for _ in range(_STEPS):
        started = time.monotonic()
        losses.append(step())
        seconds.append(time.monotonic() - started)
    return median(seconds[1:]), losses


def ours(folder: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    import aim_mlx
    from aim_mlx.finetune.config import FinetuneConfig
    from aim_mlx.finetune.data import FinetuneBatch
    from aim_mlx.finetune.model import new_network
    from aim_mlx.finetune.trainer import FinetuneTrainer
    from aim_mlx.probe.heads import HeadConfig, new_head
    from aim_mlx.probe.losses import targets_of

    images, labels = material(count)
    targets = targets_of(labels, _CLASSES)
    batch = FinetuneBatch(images, targets, targets)
    config = FinetuneConfig(batch_size=count, dropout=0.0, head="mean", warmup=0.0, **options)
    data: Any = SimpleNamespace(
        config=config,
        targets=targets,
        steps=_STEPS + 1,
        steps_in_epoch=_STEPS + 1,
        count=lambda step: count,
        batch=lambda step, rows: batch,
    )
    encoder = aim_mlx.load(folder).model
    head = new_head(HeadConfig(encoder.config.embed_dim, _CLASSES, kind="mean"), 0)
    trainer = FinetuneTrainer(
        lambda dtype: new_network(encoder, head, config, dtype), data, data, parts=1
    )

    def step() -> float:
        before = float(trainer._sums[1])
        trainer.run_step()
        return float(trainer._sums[1]) - before

    seconds, losses = timed(step)
    trainer.close()
    return {"seconds": seconds, "losses": losses}


def theirs(folder: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Aimv2VisionModel

    from aim_mlx.finetune.config import FinetuneConfig
    from aim_mlx.probe.heads import HeadConfig, new_head

    images, labels = material(count)
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    trunk = Aimv2VisionModel.from_pretrained(folder)
    if options.get("checkpointed"):
        trunk.gradient_checkpointing_enable()
    head = new_head(HeadConfig(trunk.config.hidden_size, _CLASSES, kind="mean"), 0)
    linear = torch.nn.Linear(trunk.config.hidden_size, _CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.array(head.linear.weight)))
        linear.bias.zero_()
    modules = ["q_proj", "k_proj", "v_proj", "out_proj"]
    if not options.get("full"):
        lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=modules)
        trunk = get_peft_model(trunk, lora)
    trained = [p for p in (*trunk.parameters(), *linear.parameters()) if p.requires_grad]
    config = FinetuneConfig(**options)
    optimizer = torch.optim.AdamW(trained, lr=config.peak_rate, weight_decay=config.weight_decay)

    def step() -> float:
        optimizer.zero_grad()
        tokens = trunk(pixel_values=pixels).last_hidden_state
        loss = torch.nn.functional.cross_entropy(
            linear(tokens.mean(dim=1)), torch.from_numpy(labels)
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        optimizer.step()
        return float(loss.detach())

    seconds, losses = timed(step)
    return {"seconds": seconds, "losses": losses}


def measured(who: str, folder: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """What a contender measures in a process of its own."""
    job = json.dumps([who, folder, count, options])
    command = [sys.executable, "-m", "benchmarks.finetune", "--job", job]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{who}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SIZES, default="large")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--checkpointed", action="store_true")
    parser.add_argument("--job")
    given = parser.parse_args()
    if given.job:
        who, *job = json.loads(given.job)
        if who == "model":  # here, as a process begins with its parent's peak
            return write_model(Path(job[0]), given.model)
        found = {"ours": ours, "theirs": theirs}[who](*job)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({**found, "peak": peak * (1 if sys.platform == "darwin" else 1024)}))
        return
    options = {"full": given.full, "checkpointed": given.checkpointed}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.finetune", "--model", given.model]
        subprocess.run([*command, "--job", json.dumps(["model", folder])], check=True)
        ratios = []
        for _ in range(given.rounds):
            a, b = (measured(who, folder, given.images, options) for who in ("ours", "theirs"))
            if abs(a["losses"][0] - b["losses"][0]) > 1e-3:
                raise SystemExit(f"the losses differ: {a['losses']}, {b['losses']}")
            ratios.append((a["seconds"] / b["seconds"], a["peak"] / b["peak"]))
            for name, each in (("ours", a), ("PyTorch", b)):
                print(f"{name}: {each['seconds']:.2f} s a step, peak {each['peak'] / 1e9:.2f} GB")
        time_ratio, peak_ratio = (median(each) for each in zip(*ratios, strict=True))
        print(f"ours / PyTorch: {time_ratio:.2f} of the time, {peak_ratio:.2f} of the memory")


if __name__ == "__main__":
    main()
