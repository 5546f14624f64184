# Every target works from a fresh clone: what it needs is made first. Progress goes to the terminal.
PYTHON ?= python3
PORT ?= 8080
PROMPT ?= Explain in a few sentences how rain is made.
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
export ASKED = $(value PROMPT)

.DEFAULT_GOAL := help
.PHONY: help demo up down test test-long bits lint format docs bench bench-quick validate gpu-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/local ## prepare the default models, start everything, stream one answer with statistics, stop
	$(BIN)/python -m services --port $(PORT) --ask "$$ASKED"

up: $(VENV)/local ## start everything and leave it running at http://127.0.0.1:8080 (PORT=... for another port)
	$(BIN)/python -m services --port $(PORT) --detach

down: $(VENV)/local ## stop what `make up` started
	$(BIN)/python -m services --stop

test: $(VENV)/dev ## run the tests (not the long ones), two files at a time
	$(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/dev ## run the long tests, which `make test` leaves out
	$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadfile --no-loadscope-reorder

bits: $(VENV)/dev ## the whole bit check: texts with speculation equal those without it
	$(BIN)/python -m pytest tests/e2e/test_bits.py

lint: $(VENV)/dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs ## build the documentation as a site in build/site; a dead link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/dev ## compare serving modes on this machine, into docs/reports/benchmarks; resumes where it stopped (80 minutes)
	$(BIN)/python -m benchmarks.policies

bench-quick: $(VENV)/dev ## the same with two cells (5 minutes)
	$(BIN)/python -m benchmarks.policies --quick

validate: $(VENV)/dev ## compare the simulator with the services, into docs/reports/validation; resumes where it stopped (half an hour)
	$(BIN)/python -m benchmarks.validation

gpu-check: $(VENV)/dev ## the bit check, the pass cost and the demo on a GPU; says "not run" where there is none
	$(BIN)/python -m tests.gpu_check

clean: ## remove the virtual environment and caches of tools (prepared models stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/local: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[local]'
	@touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[dev]'
	@touch $@ $(VENV)/local

$(VENV)/docs: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[docs]'
	@touch $@
