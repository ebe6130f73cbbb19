#!/bin/sh
# Trains the models that come with the package and puts them there: one for networks (self-play on the training grids,
# judged on case39 and case118, which no run trains on), one for the national balance graph. Expected time: half an hour
# on two cores without GPU. Run `make setup` before.
# What is shipped: settings, weights, manifest with calibration, model card; controls and checkpoints stay in runs/.
set -eu
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # one thread per process: actors are the parallelism

ship() { # run, folder in the package
	models=runs/$1/registry/models/verifier
	number=$(sed -n 's/^ "version": \([0-9]*\).*/\1/p' "$models/aliases/champion")
	version=$(printf 'v%04d' "$number")
	to=gg_ray/$2/registry/models/verifier
	rm -rf "gg_ray/$2"
	mkdir -p "$to/aliases"
	cp -R "$models/$version" "$to/"
	cp "$models/aliases/champion" "$to/aliases/"
	# where the data lay on the machine that trained is nobody else's business
	sed 's/^\( *data_dir:\).*/\1 ""/' "runs/$1/config.yaml" > "gg_ray/$2/config.yaml"
	gg-ray models --run "gg_ray/$2"
}

gg-ray train --name shipped --evaluate.held-out-cases case39 case118 "$@"
gg-ray calibrate --run shipped --case gb29 case14 case57 # benign days of the other training grids: budgets hold there too
ship shipped shipped
gg-ray train --config gb-balance --name shipped-gb
ship shipped-gb shipped_balance
