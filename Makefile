# Targets for contributors. `make` lists them.
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
UPGRADE ?=
# Tests mostly wait: run two at a time, each process with its own stack.
AT_ONCE ?= --numprocesses 2 --dist worksteal

# What depends on the release of PostgreSQL.
MATRIX := tests/conformance tests/matrix/test_older_stores.py $(addprefix tests/integration/test_,blocks.py chunk_writer.py constraints.py conversions.py \
  dedupe.py existing_tables.py hostile_triggers.py lanes.py maintenance.py parked.py partitions.py schema.py server_jobs.py table_contract.py types.py \
  worker.py)

.PHONY: help setup demo test clients matrix matrix-short chaos blast blast-catalog blast-short storm check format generate lock bench clean

help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## Install the locked Python packages into .venv, and download Kafka's JAR files

$(VENV)/.installed: requirements/dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --requirement requirements/dev.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --editable .
	$(BIN)/bulkgrpc stack-install
	touch $@

demo: setup ## Run the main job on a real stack and print its report
	$(BIN)/bulkgrpc demo

test: setup check ## Run the checks, then the tests on real Kafka, PostgreSQL and Valkey
	$(BIN)/pytest $(AT_ONCE) --ignore tests/chaos --ignore tests/blast --ignore tests/clients --ignore tests/matrix

clients: setup ## Run the examples of docs/clients.md: Go, Java, TypeScript, grpcurl and ghz, where they are on the machine
	$(BIN)/pytest tests/clients

matrix: setup ## Run what depends on a release: PostgreSQL 13 and 15, Kafka 3.9, Redis 7, PgBouncer, TLS for all, Python 3.11 to 3.13
	BULKGRPC_TEST_KAFKA_JARS=$$($(BIN)/python -m tools.older_kafka) $(BIN)/pytest tests/matrix
	BULKGRPC_TEST_EVERY_PYTHON=1 $(BIN)/pytest tests/integration/test_wheel.py
	for release in 13 15; do \
	  BULKGRPC_TEST_POSTGRES_PROGRAMS=$$($(BIN)/python -m tools.older_postgres $$release) \
	    $(BIN)/pytest $(AT_ONCE) $(MATRIX) || exit; done

matrix-short: setup ## Run some of them: all security at once, through PgBouncer; the writers on PostgreSQL 13
	$(BIN)/pytest tests/matrix/test_secure.py -k through_pgbouncer
	BULKGRPC_TEST_POSTGRES_PROGRAMS=$$($(BIN)/python -m tools.older_postgres 13) \
	  $(BIN)/pytest $(AT_ONCE) tests/conformance tests/integration/test_worker.py

chaos: setup ## Inject each fault under load, and prove that the checker detects broken promises
	$(BIN)/pytest $(AT_ONCE) tests/chaos

blast-catalog: setup ## Apply and repair each fault of users on a table, without the service; then one fault with it
	$(BIN)/pytest $(AT_ONCE) tests/blast/test_catalog.py tests/blast/test_middle.py

blast-short: setup ## Apply each fault of users once, and prove that the checker detects a missing protection
	$(BIN)/pytest $(AT_ONCE) tests/blast

blast: setup ## Apply every fault of users to tables, batches and roles for 120 s
	BULKGRPC_BLAST_SLOW=1 $(BIN)/pytest tests/blast/test_limits.py
	$(BIN)/python -m tests.blast --every --paired --hold 120

storm: setup ## Run ten storms of five minutes each, with new faults every 20 to 30 s
	$(BIN)/python -m tests.chaos.storm --seed 1 --seeds 10 --seconds 300

check: setup ## Check format, lint rules, types, layering, protos, sizes and the freshness of generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	if git rev-parse --quiet --verify main >/dev/null; then $(BIN)/buf breaking --against '.git#branch=main'; fi
	$(BIN)/python -m tools.budgets
	$(BIN)/python -m tools.generate --check
	$(BIN)/python -m tools.metrics_page --check

format: setup ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: setup ## Generate the Python code of the protos, and docs/metrics.md
	$(BIN)/python -m tools.generate
	$(BIN)/python -m tools.metrics_page

lock: ## Resolve the dependencies into requirements/dev.lock; `make lock UPGRADE=--upgrade` for newer ones
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev $(UPGRADE) \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
	  pyproject.toml --output-file requirements/dev.lock

bench: setup ## Measure throughput and latency next to a bare COPY in the same run
	$(BIN)/bulkgrpc bench

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
