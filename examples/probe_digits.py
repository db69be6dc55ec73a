"""Trains a probe on handwritten digits, and on shuffled ones: python examples/probe_digits.py DIR

Real scans (scikit-learn, in the extra `test`), no network. The encoder is small and untrained, as
trained ones cannot be had offline: its probe shows that the machinery works, not how good AIMv2 is.
Seen, with seed 0, on 269 images of test:

    digits: accuracy 0.918 (0.879 to 0.945), balanced 0.918, largest class 0.100; 30 epochs
    shuffled: accuracy 0.089 (0.061 to 0.129), balanced 0.089, largest class 0.100; 18 epochs

With shuffled labels nothing can be learned, and a figure above chance would mean that test had
leaked into the training. It took 35 core-seconds, Linux on a Xeon, MLX's CPU back end.
"""

import sys
from pathlib import Path

from digits import write_digits, write_encoder  # of this folder

import aim_mlx
from aim_mlx.data.labelled import Data
from aim_mlx.probe.config import protocol
from aim_mlx.probe.run import Plan, train_probe


def main(folder: Path) -> None:
    write_encoder(folder / "encoder")
    plan = Plan(protocol("fast", learning_rates=(0.003, 0.01, 0.03)), cache=folder / "tokens")
    for name in ("digits", "shuffled"):
        write_digits(folder / name, shuffled=name == "shuffled")
        done = train_probe(
            Data(str(folder / name)),
            folder / f"probe of {name}",
            lambda: aim_mlx.load(folder / "encoder"),
            plan,
        )
        figures = done.figures
        low, high = figures["accuracy_interval"]
        print(
            f"{name}: accuracy {figures['accuracy']:.3f} ({low:.3f} to {high:.3f}), balanced "
            f"{figures['balanced_accuracy']:.3f}, largest class {figures['majority']:.3f}; "
            f"{done.epochs} epochs"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("expected one folder, not there yet: python examples/probe_digits.py DIR")
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    main(target)
