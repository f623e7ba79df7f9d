# Everything runs from the checkout, inside .venv, which every target makes first if it is missing.
PYTHON ?= python3
TESTARGS ?=
BENCHARGS ?=
FUZZ_SECONDS ?= 120
VENV_PYTHON := .venv/bin/python
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help env env-latest constraints demo test test-floor test-measure test-schedulers fuzz lint \
	bench bench-convert bench-models bench-loop bench-augment bench-scale bench-gpu clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## Install the versions in constraints.txt into .venv; `make -B env` retries what was left out

$(READY): pyproject.toml constraints.txt tools/setup_env.sh
	@PYTHON="$(PYTHON)" bash tools/setup_env.sh
	@touch $@

env-latest: ## Make .venv again with the newest versions that pyproject.toml allows
	@PYTHON="$(PYTHON)" bash tools/setup_env.sh --latest
	@touch $(READY)

constraints: env ## Write the versions in .venv to constraints.txt, after `make env-latest test`
	$(VENV_PYTHON) tools/pin_versions.py
	@touch $(READY)

demo: env ## Make a small dataset, convert it, train with each loader, show the results
	$(VENV_PYTHON) tools/demo.py

test: lint ## Lint, then run the tests; `make test TESTARGS="-k plan"` chooses some
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) -m pytest -n logical --maxprocesses 4 --dist worksteal $(TESTARGS)

test-floor: .venv-floor/.ready ## Run the tests with the oldest PyTorch that is supported, in .venv-floor
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv-floor/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal $(TESTARGS)

.venv-floor/.ready: pyproject.toml constraints.txt tools/setup_env.sh
	@PYTHON="$(PYTHON)" bash tools/setup_env.sh --floor
	@touch $@

test-measure: env ## Run the tests that judge measured times; they need a machine that does nothing else
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) -m pytest -m measure $(TESTARGS)

test-schedulers: env ## As root on Debian: install Slurm and Open MPI, start a cluster on this machine, run jobs on it
	@command -v munged slurmctld slurmd mpirun > /dev/null || apt-get install -y munge slurm-wlm openmpi-bin
	$(VENV_PYTHON) -m pytest -m schedulers tests/schedulers $(TESTARGS)

fuzz: env ## Run each fuzzer for FUZZ_SECONDS (120)
	find tests -name 'fuzz_*.py' | sort | xargs -t -I {} $(VENV_PYTHON) {} --seconds $(FUZZ_SECONDS)

lint: env ## Check style, format and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

bench: env ## Measure the loaders next to their peers; `BENCHARGS="--data IMAGENET"`
	$(VENV_PYTHON) tools/bench_loaders.py $(BENCHARGS)

bench-convert: env ## Measure the converter next to FFCV's and webdataset's writers; `BENCHARGS="--src IMAGENET"`
	$(VENV_PYTHON) tools/bench_convert.py $(BENCHARGS)

bench-models: env ## Compare each model with the implementation it replaces; `BENCHARGS="--model alexnet"` chooses
	$(VENV_PYTHON) tools/bench_models.py $(BENCHARGS)

bench-loop: env ## Compare the training loop with a bare forward-backward-step loop; `BENCHARGS="--model alexnet"`
	$(VENV_PYTHON) tools/bench_loop.py $(BENCHARGS)

bench-augment: env ## Measure augmentation next to torchvision's and timm's; `BENCHARGS="--policies ta_wide"`
	$(VENV_PYTHON) tools/bench_augment.py $(BENCHARGS)

bench-scale: env ## Measure what ranks, images, shards and epochs cost; `BENCHARGS="--ranks 64 --images 1281167"`
	$(VENV_PYTHON) tools/bench_scale.py $(BENCHARGS)

bench-gpu: env ## On a CUDA GPU, measure everything there, in parts of 8 minutes; `BENCHARGS="--part loaders"`
	$(VENV_PYTHON) tools/bench_gpu.py $(BENCHARGS)

clean: ## Remove .venv and the caches; data and runs stay
	rm -rf .venv .venv-floor build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: docs
docs: env ## Refresh the tables in docs/ that follow from the code
	$(VENV_PYTHON) tools/docs_tables.py
