# The two commands a newcomer needs: `make run` and `make test`. Both set up everything they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# `make TORCH_INDEX=https://download.pytorch.org/whl/cpu run` takes the small CPU build of torch instead of the CUDA build.
TORCH := $(if $(TORCH_INDEX),$(PIP) install -q -c constraints.txt --index-url $(TORCH_INDEX) torch,@:)
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev

.PHONY: help run dev test test-all check doctor audit sbom clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(STAMP) ## Set up, then run both pipelines on the demo corpus and print the results
	$(BIN)/newsjuice run

dev: $(STAMP) ## Set up, then serve the Dagster web UI on http://127.0.0.1:3000
	@exec $(BIN)/newsjuice dev

doctor: $(STAMP) ## Say what this machine can do
	@$(BIN)/newsjuice doctor

test: $(STAMP_DEV) ## Set up, then run the linters, the type checker and the tests
	$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not whole_system'

test-all: $(STAMP_DEV) ## The same, and the slow tests of the whole system: daemons, brokers, the web UI in a browser
	$(MAKE) --no-print-directory check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP_DEV) ## Lint, formatting, import directions, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another one: make PYTHON=python3.12 run"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(TORCH)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(STAMP_DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(TORCH)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(STAMP)

audit: $(STAMP_DEV) ## Look for known vulnerabilities in the pinned packages
	@.ci/audit $(BIN)/pip-audit

sbom: $(STAMP_DEV) ## Write a bill of materials to build/sbom.json
	@.ci/sbom $(BIN)/cyclonedx-py $(BIN)/python

clean: ## Remove the virtual environment and all state
	rm -rf $(VENV) .newsjuice
