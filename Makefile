# Grid Guardian. `make train` and `make test` do all set-up on a machine with Python 3.11+, make and git.
#
#   make train ARGS="--config smoke --seed 1"      make bench BENCH=replay      make test PYTEST_ARGS="-k ybus"

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
BENCH ?= scenarios
PYTEST_ARGS ?=
# one more than two cores: tests of brokers, stores and browsers mostly wait
PYTEST_WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# a stamp newer than pyproject.toml and constraints.txt means: nothing to install
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
LIVE_STAMP := $(VENV)/.installed-live
# tests that start Ray use all cores by themselves; the others share them
pytest = RAY_AUTH_MODE=disabled $(BIN)/python -m pytest -q -m '$(1)' $(2) $(PYTEST_ARGS)
TEMPORAL := torch-geometric-temporal==0.56.2

# everything below names $(BIN)/… itself, so another active environment must not leak in
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH
# one thread per process: actors are the parallelism, and results repeat bit for bit
export OMP_NUM_THREADS ?= 1

.PHONY: help setup train live test bench lint types docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(RUN_STAMP)  ## create .venv and install what a run needs

train: $(RUN_STAMP)  ## set up, then `gg-ray train $(ARGS)`
	$(BIN)/gg-ray train $(ARGS)

live: $(LIVE_STAMP)  ## set up, then `gg-ray live $(ARGS)`: broker, Redis, feed, Verifier and page on this machine
	$(BIN)/gg-ray live $(ARGS)

test: $(TEST_STAMP)  ## set up, then everything of lint, types and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/mypy
	@# the compiled kernels of judging are made once, for all workers
	$(BIN)/python -c 'from serve.models import Models; Models.load(())'
	@# exit code 5: PYTEST_ARGS chose no test of a part; fine for one of them, a mistake for both
	none=; \
		$(call pytest,not ray and not slow,-n $(PYTEST_WORKERS) --dist loadfile) || { test $$? -eq 5; none=1; }; \
		$(call pytest,ray and not slow,) || { test $$? -eq 5; test -z "$$none" || { \
			echo "make test: no test is chosen by PYTEST_ARGS=$${PYTEST_ARGS:-}" >&2; exit 1; }; }

bench: $(TEST_STAMP)  ## set up, then `gg-ray bench $(BENCH) $(ARGS)`
	$(BIN)/gg-ray bench $(BENCH) $(ARGS)

lint: $(TEST_STAMP)  ## rules, format, spelling and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

types: $(TEST_STAMP)  ## mypy --strict on the core
	$(BIN)/mypy

docs: $(RUN_STAMP)  ## help of every command and HTML of every module, in build/docs
	mkdir -p build/docs/api
	$(BIN)/gg-ray --help > build/docs/commands.txt
	for name in $$($(BIN)/python -c 'from gg_ray.cli import COMMANDS; print(*COMMANDS)'); do \
		{ printf '\n\n== gg-ray %s\n\n' "$$name"; $(BIN)/gg-ray "$$name" --help; } >> build/docs/commands.txt; done
	modules=$$(find gg_ray actors -name '*.py' | sed -E 's#/#.#g; s#\.py$$##; s#\.__init__$$##' | sort); \
		cd build/docs/api && ../../../$(BIN)/python -m pydoc -w $$modules > /dev/null
	@echo "build/docs/commands.txt, build/docs/api/*.html"

clean:  ## remove caches and build output; keeps .venv and runs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . \( -path ./$(VENV) -o -path ./.git \) -prune -o -type d -name __pycache__ -print | xargs -r rm -rf

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Grid Guardian needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
		echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@# --no-deps: its pins (decorator, torch-sparse, torch-scatter) do not install; our adapter supplies what its cells need
	@$(PIP_INSTALL) --no-deps $(TEMPORAL) || \
		echo "warning: $(TEMPORAL) did not install; only the encoder pygt_tgcn is missing, tgcn and patch work" >&2
	touch $@

$(LIVE_STAMP): $(RUN_STAMP)
	$(PIP_INSTALL) -e ".[embedded]"
	touch $@

$(TEST_STAMP): $(RUN_STAMP)
	$(PIP_INSTALL) -e ".[dev,bench,grids,baselines,export,judge]"
	touch $@
