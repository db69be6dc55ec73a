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
name=aimv2-nano-patch14-112
aim-mlx convert encoder "$name" --dtype float16 --overwrite
# The image tower of words is this encoder, fine-tuned on the names of emoji first, and then on names and kinds.
# Two pictures that are alike and have two names are left out, for which the command ends with 3.
tune() { # MODEL TABLE EPOCHS NEW-MODEL SPLIT...
  aim-mlx finetune "data/$2.csv" -o "$2" --model "$1" --full --layer-decay 1 --learning-rate 1e-3 --warmup 0.02 \
    --clip-norm 1 --epochs "$3" --batch-size 64 --patience 0 --no-flip --jitter 0.3 --smallest-crop 0.6 \
    "${@:5}" || [ $? = 3 ]
  [ -d "$4" ] || aim-mlx fuse "$1" "$2" "$4"
}
tune "./$name" names 12 named --val 0.05 --test 0.02
tune ./named names_and_kinds 7 tower --val 0.03 --test 0
aim-mlx lit train data/words.jsonl -o words --model ./tower --text-config nano --epochs 4
aim-mlx convert words "$name-lit" --dtype float16 --overwrite
python "$scripts/evaluate.py" data "./$name" "./$name-lit" --random --json scores.json >scores.md
cat scores.md
