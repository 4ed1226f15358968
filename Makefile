# Everything installs through constraints.txt: one place says which versions are tested.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# without --no-compile pip compiles all of 70,000 files in five minutes of a core; Python compiles the few thousand that are imported
INSTALL := $(BIN)/python -m pip --disable-pip-version-check -q install --no-compile
# Where this is set, as in many containers, each of some hundred processes that the tests start would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE
INTEROP := .interop
ENGINES := vllm sglang llamacpp mooncake zlab speculators
WITH_MOONCAKE := LD_LIBRARY_PATH=$(CURDIR)/$(INTEROP)/mooncake/lib:$$LD_LIBRARY_PATH

# a file of them per core
TWO_FILES := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rP --show-capture=stdout

.PHONY: setup demo results test check lint cuda-lowering engines environments interop faults kills-and-engines stream gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -c constraints.txt torch
	$(INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## a real model gets a draft, in about nine minutes on two cores
	$(BIN)/torchspec demo

results: setup ## the demo once more, from nothing, and its table in benchmarks/RESULTS.md
	rm -rf outputs/results/demo
	$(BIN)/torchspec demo --out outputs/results
	$(BIN)/python benchmarks/write_results.py outputs/results/demo

test: setup lint ## integration tests, whose files are long, and then unit tests, a file of them per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder tests/integration tests/unit

check: setup lint ## while developing: lint, the rooms' walls, and the unit tests of what has changed since the last commit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile $$($(BIN)/python scripts/changed_tests.py $(SINCE))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

cuda-lowering: setup $(INTEROP)/cuda/.ready ## what a GPU would be given, compiled for an H100 and counted on a machine without one
	OMP_NUM_THREADS=1 PYTEST_PLUGINS=tests.cuda.guard $(BIN)/python -m pytest -n logical --dist loadfile tests/cuda

$(INTEROP)/cuda/.ready: tests/cuda/env.sh tests/cuda/guard.cpp $(VENV)/.ready
	bash $< $(BIN)/python $(INTEROP)/cuda
	touch $@

faults: setup $(VENV)/.ray $(INTEROP)/mooncake/.ready ## kill -9 at bad moments, then compare with a run that was never killed
	$(WITH_MOONCAKE) $(TWO_FILES) tests/faults

$(VENV)/.ray: $(VENV)/.ready
	$(INSTALL) -c constraints.txt -e '.[ray,mooncake]'
	touch $@

stream: setup $(VENV)/.ray $(INTEROP)/mooncake/.ready ## what the pull stream costs and carries: benchmarks/results/stream.json
	$(WITH_MOONCAKE) $(BIN)/python benchmarks/stream.py

gpu: setup ## results, gradients, speed and memory on this machine's GPU, in six minutes: benchmarks/results/CARD-TIME.jsonl
	$(BIN)/python benchmarks/gpu_check.py --out benchmarks/results/

engines: setup $(VENV)/.ray $(ENGINES:%=$(INTEROP)/%/.ready) ## an environment for each engine, once; `make -j 2 engines` builds two at a time

interop: engines ## real engines load the draft and accept what we say they accept
	$(WITH_MOONCAKE) $(TWO_FILES) tests/interop

kills-and-engines: engines ## `make faults` and `make interop` in one run
	$(WITH_MOONCAKE) $(TWO_FILES) tests/faults tests/interop

environments: setup engines $(INTEROP)/cuda/.ready ## everything that is installed; with -j 2 on both cores

$(INTEROP)/%/.ready: tests/interop/%_env.sh
	bash $< $(INTEROP)/$*
	touch $@

$(INTEROP)/zlab/.ready: setup
	mkdir -p $(INTEROP)/zlab
	$(INSTALL) --no-deps --target $(INTEROP)/zlab dflash==0.1.0
	touch $@

$(INTEROP)/speculators/.ready: setup
	mkdir -p $(INTEROP)/speculators
	$(INSTALL) --no-deps --target $(INTEROP)/speculators speculators==0.9.0 hs-connectors==0.9.0 loguru==0.7.3 openai==3.57.0 \
		jiter==0.19.0 distro==1.9.0 sniffio==1.3.1 httpx==0.28.1 httpcore==1.0.9 pydantic-settings==2.16.3 python-dotenv==1.2.4
	touch $@

clean:
	rm -rf $(VENV) $(INTEROP) outputs build dist *.egg-info
