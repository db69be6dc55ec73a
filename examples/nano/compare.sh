#!/usr/bin/env bash
# What the pixels and the captions each give: bash examples/nano/compare.sh FOLDER, after make.sh FOLDER.
# Encoders of the same steps by either objective and by both, one of random weights, and the shipped one; a text
# tower for each, all in the same short steps; then measured. The same command goes on where it was interrupted.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
name=aimv2-nano-patch14-112
cd "$1"
mkdir -p compare
awk 'NR % 5 == 1' data/words.jsonl >data/few-words.jsonl

[ -d compare/random ] || aim-mlx init $name compare/random
for objective in both captions pixels; do
  aim-mlx pretrain data/train.jsonl -o compare/$objective --config nano --objective $objective --epochs 1 \
    --batch-size 64 --no-flip --jitter 0.3 --smallest-crop 0.6
done

models=()
for encoder in compare/both compare/captions compare/pixels compare/random $name; do
  words=compare/$(basename $encoder)-words
  aim-mlx lit train data/few-words.jsonl -o "$words" --model $encoder --epochs 1 --learning-rate 0.002 \
    --held-out 0.03
  models+=("$words")
done
python "$scripts/evaluate.py" data "${models[@]}" --json compare.json
