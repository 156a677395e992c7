# What a contributor can do. `make` lists it.
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
UPGRADE ?=
# Most of a test's time goes by waiting: two at a time, each with parts of its own.
AT_ONCE ?= --numprocesses 2 --dist worksteal

.PHONY: help setup demo test chaos storm check format generate lock bench clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Install everything into .venv: locked Python packages, then Kafka's jars by Maven

$(VENV)/.installed: requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --requirement requirements/dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	$(BIN)/bulkgrpc stack-install
	touch $@

demo: setup ## Run the main job on real parts, from nothing to a report
	$(BIN)/bulkgrpc demo

test: setup check ## Run the checks, then the tests on real Kafka, PostgreSQL and Valkey, then those of `make chaos`
	$(BIN)/pytest $(AT_ONCE) --ignore tests/chaos
	$(BIN)/pytest $(AT_ONCE) tests/chaos

chaos: setup ## Hurt every part under load, one fault after the other, and prove that the checker sees broken promises
	$(BIN)/pytest $(AT_ONCE) tests/chaos

storm: setup ## Draw new faults every 20 to 30 s, for ten seeds of five minutes each
	$(BIN)/python -m tests.chaos.storm --seed 1 --seeds 10 --seconds 300

check: setup ## Lint, types, layering, protos, and that generated code is fresh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	if git rev-parse --quiet --verify main >/dev/null; then $(BIN)/buf breaking --against '.git#branch=main'; fi
	$(BIN)/python -m tools.budgets
	$(BIN)/python -m tools.generate --check

format: setup ## Format and mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: setup ## Generate the Python code of the protos
	$(BIN)/python -m tools.generate

lock: ## Resolve the dependencies into requirements/dev.lock; `make lock UPGRADE=--upgrade` for newer ones
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev $(UPGRADE) \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  pyproject.toml --output-file requirements/dev.lock

bench: setup ## Measure throughput and latency next to a bare COPY, in one run
	$(BIN)/bulkgrpc bench

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
