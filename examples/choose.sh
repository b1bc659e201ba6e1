#!/usr/bin/env bash
# Choose a quarter of a small pool by common words, then by length alone:  bash examples/choose.sh MODEL RUN
# Neither takes gradients, so this runs in seconds. Leave --method out for gradient influence.
set -euo pipefail
model=$1 run=$2
data=$(dirname "${BASH_SOURCE[0]}")/data

siftune run --model "$model" --pool "$data/pool.jsonl" --target sums="$data/target.jsonl" --method bm25 --keep 25% --out "$run"
siftune select "$run" --method length --keep 25% --name longest
