# Two commands do everything on a fresh machine: `make demo` and `make test`. Each stage is a target, too: `make run CONFIG=pipelines/NAME.yaml`.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
QUIET := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
PYTEST := $(QUIET) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
STAGES := prepare train-base train-ref score pretrain eval report run

.PHONY: help install demo $(STAGES) configured check test lint soak bench docs wheel clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
	@echo 'The stages take CONFIG=pipelines/NAME.yaml, and options of slmctl in ARGS="...".'

install: $(INSTALLED)  ## Create .venv with everything pinned by constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 install"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: a download of about 1 GB (more where pip takes PyTorch's CUDA build), 2 to 10 minutes, once; pip says nothing while it installs what it has downloaded"
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

demo: install  ## Run the whole pipeline on generated data (CPU, about 5 minutes)
	$(BIN)/slmctl demo

prepare: configured install  ## Texts to token shards
train-base: configured install  ## Make the base model of a pipeline with model.scratch
train-ref: configured install  ## Continue the base on the curated set: the reference model
score: configured install  ## The reference's loss of every token of the corpus
pretrain: configured install  ## Train the arms
eval: configured install  ## Measure base, reference and arms
report: configured install  ## The page of what eval has measured
run: configured install  ## Every stage in order; what is complete is skipped

$(STAGES):
	$(BIN)/slmctl $@ '$(CONFIG)' $(ARGS)

configured:
	@$(if $(CONFIG),,$(error CONFIG is not given. Name the pipeline: make $(or $(firstword $(filter $(STAGES),$(MAKECMDGOALS))),run) CONFIG=pipelines/NAME.yaml))

check: install lint  ## What test runs, without the slow tests: about a minute
	$(PYTEST) -m 'not slow' --durations=5 --durations-min=1

test: install lint  ## Lint, format check, types and all tests: about ten minutes
	$(PYTEST)

lint: install  ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: install  ## Kill workers and runs 100 times each; they end as undisturbed ones
	$(QUIET) $(BIN)/python tests/soak/soak_store.py --kills 100
	$(QUIET) $(BIN)/python tests/soak/soak_training.py --kills 100 --ranks 1
	$(QUIET) $(BIN)/python tests/soak/soak_training.py --kills 100 --ranks 2

bench: install  ## Measure; raw figures go to benchmarks/results/
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/load.py

docs: install  ## Rewrite the tables of docs/ that are made from the code
	$(BIN)/python -m slmctl.config.documentation docs/configuration.md
	$(BIN)/python -m slmctl.config.strategies docs/strategies.md

wheel: install  ## Build dist/slmctl-*.whl
	$(BIN)/python -m build --wheel

clean:  ## Remove what can be made again (not runs/)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
