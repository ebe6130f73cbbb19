#!/bin/sh
# Trains the model that comes with the package and puts it there: self-play on the training grids, judged on case39 and
# case118, which no run trains on. Expected time: a quarter of an hour on two cores without GPU. Run `make setup` before.
# What is shipped: settings, weights, manifest with calibration, model card; controls and checkpoints stay in runs/shipped.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread per process: actors are the parallelism

gg-ray train --name shipped --evaluate.held-out-cases case39 case118 "$@"
models=runs/shipped/registry/models/verifier
number=$(sed -n 's/^ "version": \([0-9]*\).*/\1/p' "$models/aliases/champion")
version=$(printf 'v%04d' "$number")
to=gg_ray/shipped/registry/models/verifier
rm -rf gg_ray/shipped
mkdir -p "$to/aliases"
cp -R "$models/$version" "$to/"
cp "$models/aliases/champion" "$to/aliases/"
# where the data lay on the machine that trained is nobody else's business
sed 's/^\( *data_dir:\).*/\1 ""/' runs/shipped/config.yaml > gg_ray/shipped/config.yaml
gg-ray models --run gg_ray/shipped
