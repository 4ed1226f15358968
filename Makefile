# Everything installs through constraints.txt: one place says which versions are tested.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
INTEROP := .interop

.PHONY: setup demo test lint interop faults stream clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## a real model gets a draft, in about ten minutes on two cores
	$(BIN)/torchspec demo

test: setup lint ## unit and integration tests
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

faults: setup $(VENV)/.ray ## kill -9 at bad moments, of processes alone and on Ray, then compare with a run that was never killed
	$(BIN)/python -m pytest tests/faults

$(VENV)/.ray: $(VENV)/.ready
	$(PIP) install -c constraints.txt -e '.[ray]'
	touch $@

stream: setup $(VENV)/.ray ## what the pull stream costs and carries: benchmarks/results/stream.json
	$(BIN)/python benchmarks/stream.py

interop: setup $(VENV)/.ray $(INTEROP)/vllm/.ready $(INTEROP)/zlab/.ready ## real engines load the draft and accept what we say they accept
	$(BIN)/python -m pytest -s tests/interop

$(INTEROP)/vllm/.ready: tests/interop/vllm_env.sh
	bash tests/interop/vllm_env.sh $(INTEROP)/vllm
	touch $@

$(INTEROP)/zlab/.ready: setup
	mkdir -p $(INTEROP)/zlab
	$(PIP) install --no-deps --target $(INTEROP)/zlab dflash==0.1.0
	touch $@

clean:
	rm -rf $(VENV) $(INTEROP) outputs build dist *.egg-info
