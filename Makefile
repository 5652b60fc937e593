# Two commands do everything on a fresh machine: `make demo` and `make test`.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help install demo test lint soak bench docs wheel clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Create .venv with everything pinned by constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 install"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv: a download of about 1 GB (more where pip takes PyTorch's CUDA build), 2 to 10 minutes, once; pip says nothing while it installs what it has downloaded"
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

demo: install  ## Set up (once: a download of about 1 GB), and run the whole pipeline on generated data (CPU, about 5 minutes)
	$(BIN)/slmctl demo

test: install lint  ## Lint, format check, types and tests
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: install  ## Kill workers of prepare and score, and training runs, a hundred times each, and compare with undisturbed ones
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/soak_store.py --kills 100
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/soak_training.py --kills 100 --ranks 1
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python tests/soak/soak_training.py --kills 100 --ranks 2

bench: install  ## Measure; raw figures go to benchmarks/results/
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/load.py

docs: install  ## Rewrite docs/configuration.md's tables from the field docstrings
	$(BIN)/python -m slmctl.config.documentation docs/configuration.md

wheel: install  ## Build dist/slmctl-*.whl
	$(BIN)/python -m build --wheel

clean:  ## Remove what can be made again (not runs/)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
