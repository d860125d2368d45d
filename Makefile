# `make` alone lists the targets. Every one sets up what it needs first: a virtual environment in .venv, from the lock files.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := stream pandas kafka redis avro protobuf s3 metrics demo bench dev

# Test processes side by side.
JOBS ?= 2
# The interpreter that .venv is made with: `make test PYTHON=/path/to/python3.11` if the search finds the wrong one.
PYTHON ?=

# `make services`: Kafka on this port and Redis on the next; 0: free ones. Their own, 9092 and 6379, if it is empty.
PORT ?=

.PHONY: help test lint format demo demo-kafka services soak bench lock wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

test: lint ## everything that must hold: lint, types, layers, tests, examples in docstrings and documentation
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(INSTALLED) ## ruff, mypy (strict), and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED) ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(INSTALLED) ## a year of flights through two workers, one of them killed, every number checked
	$(BIN)/python examples/flights/demo.py

demo-kafka: $(INSTALLED) ## the same over a real Kafka and a real Redis, which it starts and stops itself
	$(BIN)/python tools/services --port 0 --data .demo/servers -- $(BIN)/python examples/flights/demo.py --directory .demo/kafka

services: $(INSTALLED) ## Kafka and Redis in the foreground, until Ctrl-C; PORT=0 for free ports
	@$(BIN)/python tools/services $(if $(PORT),--port $(PORT))

soak: $(INSTALLED) ## the long tests: as many examples as an hour allows, seeds kept in .hypothesis
	$(BIN)/python -m pytest -m soak --hypothesis-profile=soak --hypothesis-show-statistics tests

bench: $(INSTALLED) ## the figures of docs/performance.md, each beside its peer
	$(BIN)/python -m benchmarks

wheel: $(INSTALLED) ## dist/*.whl
	$(BIN)/hatchling build -t wheel

lock: ## resolve pyproject.toml again into requirements/*.txt: versions and hashes, no addresses
	PYTHON="$(PYTHON)" tools/lock $(EXTRAS)

clean: ## remove what make made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(INSTALLED): pyproject.toml requirements/build.txt requirements/dev.txt tools/install tools/python
	PYTHON="$(PYTHON)" tools/install $(VENV)
	@touch $@
