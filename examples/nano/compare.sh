#!/usr/bin/env bash
# What the pixels and the captions each give: bash examples/nano/compare.sh FOLDER, after make.sh FOLDER.
# Encoders of the same steps by either objective and by both, and one of random weights; a text tower for
# each, all in the same short steps; then measured. The same command goes on where it was interrupted.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
cd "$1"
mkdir -p compare
awk 'NR % 5 == 1' data/words.jsonl >data/few-words.jsonl

names=()
for objective in both captions pixels random; do
  encoder=compare/$objective
  if [ $objective = random ]; then
    [ -d $encoder ] || aim-mlx init aimv2-nano-patch14-112 $encoder
  else
    aim-mlx pretrain data/train.jsonl -o $encoder --config nano --objective $objective --epochs 1 \
      --batch-size 64 --no-flip --jitter 0.3 --smallest-crop 0.6
  fi
  aim-mlx lit train data/few-words.jsonl -o $encoder-words --model $encoder --epochs 1 \
    --learning-rate 0.002 --held-out 0.03
  names+=("$encoder-words")
done
python "$scripts/evaluate.py" data "${names[@]}" --json compare.json
