# All of the project's habits. Each target sets up what it needs: `make test` works on a fresh clone.

PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TRITON := $(VENV)/.triton

.PHONY: help install demo test test-slow test-oldest test-newest lint format types docs wheel clean

help:  ## Say what the targets are
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Create .venv and install the package with its development tools

$(INSTALLED): setup.cfg constraints.txt pyproject.toml
	@echo 'installing into $(VENV): some 2 minutes and 1 GB'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24' -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt 'setuptools<81' torch
	PYTHONWARNINGS='ignore:Editable installation' \
		$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

# For the tests of the GPU's kernels alone: 700 MB, which PyTorch's CUDA builds bring with them.
$(TRITON): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -c constraints.txt 'triton; platform_system == "Linux"'
	touch $@

demo: $(INSTALLED)  ## Search, derive, retrain, export and compare a small network, in minutes
	PATH="$(abspath $(BIN)):$$PATH" python examples/demo.py

test: $(TRITON)  ## The fast tests
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(TRITON)  ## The slow tests
	$(BIN)/python -m pytest -n 2 -m slow

test-oldest:  ## The fast tests with the oldest Python and packages that setup.cfg allows
	$(OLDEST_PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[dev]'
	build/oldest/bin/python -m pytest -n 2 -m 'not slow'

test-newest:  ## The fast tests with the newest packages that setup.cfg allows
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade -e '.[dev]'
	build/newest/bin/python -m pytest -n 2 -m 'not slow'

lint: $(INSTALLED)  ## Lint and check the format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)  ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)  ## Check the types
	$(BIN)/mypy

docs: $(INSTALLED)  ## Build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

wheel: $(INSTALLED)  ## Build a wheel into dist/
	$(BIN)/python -m build --no-isolation --wheel

clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info
