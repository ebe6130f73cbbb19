#!/bin/sh
# The default run from training to scored windows: self-play with Ray on this machine, control, suites, promotion.
# Expected time: some minutes on two cores without GPU; most of it is training. Run `make setup` once before.
# Interrupted? `sh runs/laptop.sh --resume auto` goes on from the newest checkpoint; other options go to train as well.
# Where Ray cannot start (no ports, no /dev/shm): sh runs/laptop.sh --mode serial
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread per process: actors are the parallelism

gg-ray doctor
gg-ray train --config laptop "$@" --out runs/laptop
gg-ray status runs/laptop
gg-ray models --run runs/laptop
gg-ray score runs/laptop/report/windows.parquet --model latest --run runs/laptop
