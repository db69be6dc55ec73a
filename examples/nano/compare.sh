#!/usr/bin/env bash
# What the pixels and the captions each give: bash examples/nano/compare.sh FOLDER [SEED...], after make.sh FOLDER.
# By each seed (0, 1 and 2): encoders of the same steps by either objective and by both, and one of random weights;
# a text tower for each and for the shipped encoder, all in the same short steps; then measured. The same command goes
# on where it was interrupted.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
name=aimv2-nano-patch14-112
cd "$1"
shift
[ $# -gt 0 ] || set -- 0 1 2
mkdir -p compare
awk 'NR % 5 == 1' data/words.jsonl >data/few-words.jsonl

models=()
words() { # words ENCODER SEED OUTPUT: a text tower for an encoder
  aim-mlx lit train data/few-words.jsonl -o "$3" --model "$1" --text-config nano --epochs 1 --learning-rate 0.002 \
    --held-out 0.03 --seed "$2"
  models+=("$3")
}

for seed in "$@"; do
  for objective in both captions pixels; do
    aim-mlx pretrain data/train.jsonl -o compare/$objective-$seed --config nano --objective $objective --epochs 1 \
      --batch-size 64 --no-flip --jitter 0.3 --smallest-crop 0.6 --seed "$seed"
  done
  [ -d "compare/random-$seed" ] || aim-mlx init $name "compare/random-$seed" --seed "$seed"
  for encoder in both captions pixels random; do
    words compare/$encoder-"$seed" "$seed" compare/$encoder-"$seed"-words
  done
done
words $name "$1" compare/shipped-words
python "$scripts/evaluate.py" data "${models[@]}" --json compare.json
