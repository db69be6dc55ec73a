"""`python -m benchmarks.text`: prompts a second through a text tower of the published size.

Labels in 80 templates, as ids, through `LiT.encode_text` and through transformers, from one
checkpoint with random weights; each measurement in a process of its own, ours and theirs in turn.
transformers runs with eager attention and a mask, without which its text tower is not causal, on
batches of one label's templates, which is how it is used, and of 256 prompts.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import fresh, spread, write_result

EOS, BOS = 49_407, 49_406
ALIKE = 2e-5  # of the largest number; 1.6e-6 was seen
KINDS = ["a photo", "a bad photo", "a close-up", "a cropped photo", "a bright photo", "a drawing"]
KINDS += ["a dark photo", "a blurred picture", "a painting", "a small low resolution image"]
SUBJECTS = ["of a {}", "of the {}", "of one {}", "of my {}"]
ENDS = [".", " that is outdoors."]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text", description=__doc__)
    parser.add_argument("--labels", type=int, default=100, help="in 80 templates each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON file to write")
    options = parser.parse_args()
    contenders = {"ours": ("ours", 0), "theirs, 80": ("theirs", 80), "theirs, 256": ("theirs", 256)}
    rounds = []
    with tempfile.TemporaryDirectory(prefix="aim-mlx-benchmark-") as folder:
        fresh("benchmarks.text", "make", folder=folder)
        for _ in range(options.rounds):
            each = {}
            for name, (side, batch) in contenders.items():
                asked = {"folder": folder, "labels": options.labels, "batch": batch}
                each[name] = fresh("benchmarks.text", side, **asked)
                print(name, each[name], file=sys.stderr)
            rounds.append(each)
        apart = fresh("benchmarks.text", "compare", folder=folder)["apart"]
    print_table(rounds)
    print(f"vectors differ by {apart:.1e} of the largest number")
    if not apart <= ALIKE:
        raise SystemExit(f"the vectors of the contenders differ by more than {ALIKE}")
    write_result(options.output, {"labels": options.labels, "apart": apart, "rounds": rounds})


def print_table(rounds: list[dict[str, Any]]) -> None:
    """Medians of the rounds with the lowest and highest; ratios within a round."""
    for name in rounds[0]:
        for unit in ("prompts_per_second", "prompts_per_core_second"):
            values = [each[name][unit] for each in rounds]
            ratios = [each["ours"][unit] / each[name][unit] for each in rounds]
            print(
                f"{name}: {spread(values, '.1f')} {unit.replace('_', ' ')}, "
                f"ours is {spread(ratios, '.2f')} times that"
            )


def prompts(labels: int) -> np.ndarray:
    """Ids (80 * labels, L), label by label, a token a word; labels have one to four."""
    known: dict[str, int] = {}
    rng = np.random.default_rng(0)
    names = [" ".join(map(str, rng.integers(0, 9000, rng.integers(1, 5)))) for _ in range(labels)]
    templates = [f"{kind} {of}{end}" for kind, of, end in product(KINDS, SUBJECTS, ENDS)]
    rows = []
    for name, template in product(names, templates):
        words = template.replace("{}", name).replace(".", " .").split()
        rows.append([BOS, *(known.setdefault(word, len(known)) for word in words), EOS])
    ids = np.full((len(rows), max(map(len, rows))), EOS, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def make(folder: str) -> dict[str, Any]:
    """A checkpoint with the published text tower, and a small image tower."""
    import torch
    from transformers import Aimv2Config, Aimv2Model

    text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    text |= {"num_attention_heads": 6, "vocab_size": EOS + 1, "eos_token_id": EOS}
    vision = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 56, "use_head": True}
    torch.manual_seed(0)
    Aimv2Model(
        Aimv2Config(text_config=text, vision_config=vision, projection_dim=768)
    ).save_pretrained(folder)
    return {}


def ours(folder: str, labels: int, batch: int) -> dict[str, Any]:
    """All prompts at once: the tower divides them itself, whatever the `batch`."""
    import aim_mlx

    lit = aim_mlx.load_lit(folder)
    ids = prompts(labels)
    lit.encode_text(ids[:400])  # streams, threads and kernels
    return timed(lambda: np.array(lit.encode_text(ids)), len(ids), f"{folder}/ours.npy")


def theirs(folder: str, labels: int, batch: int) -> dict[str, Any]:
    import torch
    from transformers import Aimv2Model

    model = Aimv2Model.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.from_numpy(prompts(labels)).long()

    def run(part):
        longest = int((part != EOS).sum(1).max()) + 1
        part = part[:, :longest]
        mask = (torch.arange(longest) <= (part == EOS).int().argmax(1, keepdim=True)).long()
        return model.text_projection(model.text_model(part, attention_mask=mask).pooler_output)

    def all_of_them():
        return torch.cat([run(ids[i : i + batch]) for i in range(0, len(ids), batch)]).numpy()

    with torch.inference_mode():
        run(ids[:batch])
        return timed(all_of_them, len(ids), f"{folder}/theirs-{batch}.npy")


def compare(folder: str) -> dict[str, Any]:
    """How far the contenders' vectors are apart at most, of the largest number in them."""
    found = [np.load(path) for path in sorted(Path(folder).glob("*.npy"))]
    largest = max(float(np.abs(vectors).max()) for vectors in found)
    apart = max(float(np.abs(vectors - found[0]).max()) for vectors in found)
    return {"apart": apart / largest}


def timed(work: Callable[[], np.ndarray], count: int, target: str) -> dict[str, Any]:
    """Prompts a second of the clock and of the processor; the vectors are kept, to be compared."""
    wall, cpu = time.perf_counter(), time.process_time()
    vectors = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(vectors) == count
    np.save(target, vectors)
    return {
        "prompts_per_second": count / wall,
        "prompts_per_core_second": count / cpu,
        "load_average": os.getloadavg()[0],
    }


WORKERS = {each.__name__: each for each in (make, ours, theirs, compare)}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in WORKERS:
        print(json.dumps(WORKERS[sys.argv[1]](**json.loads(sys.argv[2]))))
    else:
        main()
