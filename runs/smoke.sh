#!/bin/sh
# The whole training side in small: train, look, score, evaluate. Proves that every command runs, not that anything is learnt.
# Expected time: about one minute on two cores, no Ray, no GPU. Run `make setup` once before. Further options go to train:
#   sh runs/smoke.sh --seed 1
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread per process: results repeat bit for bit

gg-ray doctor
gg-ray train --config smoke "$@" --out runs/smoke
gg-ray status runs/smoke
gg-ray models --run runs/smoke
# latest, not champion: thirty steps may not pass the promotion gate
gg-ray score runs/smoke/report/windows.parquet --model latest --run runs/smoke
gg-ray evaluate --model latest --suite windows --windows 8 --run runs/smoke
gg-ray promote latest --alias challenger --force --run runs/smoke
