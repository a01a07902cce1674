# What a developer does here. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help install demo tiny-checkpoint test torture-short torture lint typecheck format bench bench-gpu docs clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# pip comes last, so that an environment that was interrupted is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# torch first and pinned: any other order may pull another build of several gigabytes.
$(STAMP): setup.cfg constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

install: $(STAMP)  ## Make .venv/ with the command pisco-index in it

demo: install  ## Build an index of invented articles and answer questions from stored memory
	$(BIN)/python examples/demo.py

tiny-checkpoint: $(DEV_STAMP)  ## Train the demonstration's checkpoint anew, in tiny-checkpoint/: some hours on two cores
	$(BIN)/python examples/tiny_checkpoint.py

test: $(DEV_STAMP)  ## Run the tests
	$(BIN)/python -m pytest

torture-short: $(DEV_STAMP)  ## Build under random faults, 2 seeds of them
	PISCO_INDEX_TORTURE=1 $(BIN)/python -m pytest tests/test_torture.py tests/pipeline/test_faults.py tests/pipeline/pools/test_ray_pool.py

torture: $(DEV_STAMP)  ## Build under random faults, 20 seeds of them
	$(BIN)/python tests/torture.py --seeds 0-19 --json torture.json

lint: $(DEV_STAMP)  ## Check lint, format and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(DEV_STAMP)  ## Check the types
	$(BIN)/pyrefly check

format: $(DEV_STAMP)  ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Run the benchmarks at a size for this machine
	$(BIN)/python benchmarks/compress.py
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/fetch.py --documents 20000

bench-gpu: install  ## Measure the compressor and the decoder on this GPU, some minutes; writes gpu.json
	$(BIN)/python benchmarks/gpu.py --out gpu.json

docs: $(DEV_STAMP)  ## Check the documentation against the code
	$(BIN)/python -m pytest tests/test_docs.py

clean:  ## Remove what the other targets made, but for tiny-checkpoint/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo-index
