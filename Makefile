# The two commands of the README are `make demo` and `make test`; each sets up all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt

.PHONY: help demo test lint typecheck bench bench-gpu clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.installed ## A conversation that survives the night, on the bundled model
	$(BIN)/longmem demo

test: $(VENV)/.installed-dev ## Run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev ## Check style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-dev ## Check types (mypy --strict)
	$(BIN)/python scripts/typecheck_tree.py
	$(BIN)/mypy

bench: $(VENV)/.installed ## Measure time per reply token against the length of the history
	$(BIN)/longmem bench decode

bench-gpu: $(VENV)/.installed ## Check and measure the kernels and the engine on this machine's GPU
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[plot]'
	$(BIN)/longmem bench gpu --out docs/results

clean: ## Remove everything the targets made
	rm -rf $(VENV) .typecheck build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed
