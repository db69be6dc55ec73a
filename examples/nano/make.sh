#!/usr/bin/env bash
# Makes the small models that the package brings, from nothing: bash examples/nano/make.sh FOLDER
# The same command goes on where it was interrupted. README.md beside it says what it needs and takes.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
[ -f data/manifest.json ] || python "$scripts/gather.py" data

# Letters and arrows are not to be mirrored; other colours of the same drawing are the same thing.
aim-mlx pretrain data/train.jsonl -o encoder --config nano --epochs 9 --batch-size 64 \
  --no-flip --jitter 0.3 --smallest-crop 0.6
aim-mlx lit train data/words.jsonl -o words --model encoder --epochs 2

name=aimv2-nano-patch14-112
aim-mlx convert encoder "$name" --dtype float16 --overwrite
aim-mlx convert words "$name-lit" --dtype float16 --overwrite
python "$scripts/evaluate.py" data "$name-lit" --random --json scores.json >scores.md
cat scores.md
