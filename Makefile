# Everything runs from the checkout, inside .venv, which `make env` makes and the other targets call for.
PYTHON ?= python3
TESTARGS ?=
BENCHARGS ?=
VENV_PYTHON := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo test lint bench bench-convert bench-models bench-loop clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## Install everything into .venv; `make -B env` looks again for what was left out

$(READY): pyproject.toml tools/setup_env.sh
	@PYTHON="$(PYTHON)" bash tools/setup_env.sh
	@touch $@

demo: env ## Make a small data set, convert it, train with each loader, show the results
	$(VENV_PYTHON) tools/demo.py

test: lint ## Lint, then run the tests; `make test TESTARGS="-k plan"` chooses some
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) -m pytest -n logical --maxprocesses 4 --dist loadfile $(TESTARGS)

lint: env ## Check style, format and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

bench: env ## Measure the loaders beside their peers; `BENCHARGS="--data IMAGENET"`
	$(VENV_PYTHON) tools/bench_loaders.py $(BENCHARGS)

bench-convert: env ## Measure the converter beside FFCV's and webdataset's writers; `BENCHARGS="--src IMAGENET"`
	$(VENV_PYTHON) tools/bench_convert.py $(BENCHARGS)

bench-models: env ## Each model against the implementation it replaces; `BENCHARGS="--model alexnet"` chooses
	$(VENV_PYTHON) tools/bench_models.py $(BENCHARGS)

bench-loop: env ## The training loop against a bare forward-backward-step loop; `BENCHARGS="--model alexnet"`
	$(VENV_PYTHON) tools/bench_loop.py $(BENCHARGS)

clean: ## Remove .venv and the caches; data and runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
