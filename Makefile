# Two commands: `make demo` and `make test`. Each makes the virtual environment and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-rest test-cluster check soak format bench results openapi wheel clean

help: ## What there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## The main job: phones train both models through the cloud, on this machine
	$(BIN)/flsys demo

test: $(VENV)/.dev ## All tests: those on real clusters, and the others on what these leave of the cores
	@$(MAKE) --no-print-directory --jobs 2 --keep-going test-cluster test-rest

# Told in one piece when it ends, since the others tell meanwhile. Both get Ctrl-C.
test-cluster:
	@told=$$(mktemp); trap 'rm -f "$$told"' EXIT; $(BIN)/pytest tests/ray >"$$told" 2>&1; ended=$$?; \
	printf '\n%s\n' '$(BIN)/pytest tests/ray'; cat "$$told"; exit $$ended

test-rest:
	nice -n 10 $(BIN)/pytest tests --ignore tests/ray -n auto

check: $(VENV)/.dev ## Style, types, import contracts, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/audit.py
	$(BIN)/pytest tests/docs

SEEDS ?= 10000
soak: $(VENV)/.dev ## Disasters by the thousand: make soak SEEDS=100000
	$(BIN)/python tests/faults/soak.py --seeds $(SEEDS)

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## The figures of speed, memory and bytes that the docs quote
	$(BIN)/python benchmarks/program_step.py
	$(BIN)/python benchmarks/coordinator.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/overload.py
	$(BIN)/python benchmarks/pace_steering.py
	$(BIN)/python benchmarks/capacity.py
	$(BIN)/python benchmarks/actor_memory.py
	$(BIN)/python benchmarks/asynchronous.py
	$(BIN)/python benchmarks/contention.py
	$(BIN)/python benchmarks/isolation.py
	$(BIN)/python benchmarks/many_models.py
	$(BIN)/python benchmarks/two_apps.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/aggregation_memory.py
	$(BIN)/python benchmarks/s3.py
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/simulation_scale.py
	$(BIN)/python benchmarks/simulation_scale.py --devices 1000000 --rounds 20

results: $(VENV)/.dev ## Accuracy on real data: run what has no line yet, and write docs/results.md (FLSYS_DATA; some hours)
	$(BIN)/python benchmarks/results/run.py
	$(BIN)/python benchmarks/results/render.py

openapi: $(VENV)/.dev ## Write docs/openapi.json anew
	$(BIN)/python -m flsys_ray.http.openapi > docs/openapi.json

wheel: $(BIN)/python ## Build dist/flsys_ray-*.whl, for cluster.yaml
	rm -rf dist build
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[device,cloud,keras]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
