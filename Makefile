# Everything runs in .venv, which is made on first use. Python 3.11 or newer: `make PYTHON=python3.12 test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0
# else every process of a test compiles the package again
unexport PYTHONDONTWRITEBYTECODE

TORCH_CPU ?=

.PHONY: lock dist demo test test-fast test-ray test-slow test-long test-kills test-tutorials lint format clean chaos corpus fuzz site release

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "medv_ray needs Python 3.11 or newer; this is %d.%d. Use: make PYTHON=..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## score an embedded archive with an embedded trained toy model
	$(BIN)/medv demo

test: $(VENV)/.installed  ## tests that need no GPU, in two halves side by side
	$(MAKE) --jobs 2 --output-sync=target --keep-going test-fast test-ray

test-fast: $(VENV)/.installed  ## no Ray, server or whole job; gives way to the other half, which waits a lot and takes longer
	OMP_NUM_THREADS=1 nice -n 5 $(BIN)/python -m pytest -q -rs -m "not integration"

test-ray: $(VENV)/.installed  ## with Ray, servers, object stores, training runs, whole jobs and child processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "integration and not chaos and not slow"

test-slow: test-long test-kills  ## the rest, one after the other: kills want to know when

test-long: $(VENV)/.installed  ## many workers, long jobs, ZeRO-3 against the formulas
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow and not chaos" --ignore tests/tutorials

test-kills: $(VENV)/.installed  ## jobs whose Ray is killed, SIGTERM, Ctrl-C
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m chaos

test-tutorials: $(VENV)/.installed  ## the documentation's tutorials, line by line, and the site; half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow tests/tutorials

site: $(VENV)/.installed  ## docs/ as a folder of pages
	$(BIN)/mkdocs build --strict

chaos: $(VENV)/.installed  ## every harness of tests/chaos in full: kills, faults, flipped bits, a million rows, 100,000 requests; hours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.kill_runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.many_rows
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.kill_train
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.serve_runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.orthanc_round_trip
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.bit_flips
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.fault_runs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.autoscale

release: $(VENV)/.installed  ## every figure of docs/reliability.md's first table; hours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos.release

fuzz: $(VENV)/.installed  ## every parser and the endpoint, ten minutes each or 10^5 inputs
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --runs 100000 --seconds 600
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.serving_fuzz --cases 100000 --seconds 600

corpus: $(VENV)/.installed  ## every kind of bad input through every path; writes the table of docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.corpus --write docs/reliability.md

lock: $(VENV)/.installed  ## cluster/requirements/*.txt: what the images hold, with digests; TORCH_CPU=FOLDER_OR_URL has torch's CPU builds
	$(BIN)/python -m pip install --quiet uv==0.13.9 packaging
	$(BIN)/python cluster/lock.py --torch-cpu '$(TORCH_CPU)'

dist: $(VENV)/.installed  ## dist/: wheel, sdist and SBOM, tried in an empty environment outside this clone (20 minutes)
	$(BIN)/python -m tests.wheel --out dist

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist site medv_ray.egg-info demo-run finetune-demo .mypy_cache .ruff_cache
