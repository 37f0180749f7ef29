# Everything a user runs by hand. `make demo` and `make test` set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's find-links by itself.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# The newest torch this is tested with. For another: make setup TORCH='torch==2.11.*'
TORCH ?= torch<2.14
# cpu, cu130, auto, …: where uv looks for torch (Linux with no GPU: cpu is much smaller).
TORCH_BACKEND ?=
# Bytecode once and for all: where Python may not write it (PYTHONDONTWRITEBYTECODE, a read-only folder)
# torch and JAX would otherwise be compiled anew by every command.
UV_PIP := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(if $(TORCH_BACKEND),--torch-backend=$(TORCH_BACKEND))

.PHONY: help setup demo test test-experiments test-all test-fast lint types format check clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(VENV)/.installed  ## a virtual environment with everything in it (.venv)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"python 3.11 or newer is needed, this is {sys.version.split()[0]}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV_PIP) --editable '.[dev]' '$(TORCH)'
	touch $@

demo: setup       ## active learning on scikit-learn's digits: a table and a picture, about two minutes
	$(BIN)/python -m pipelines.demo

# Processes of the tests, of at most 3 GB each.
JOBS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
test: setup       ## the tests (those that need the full data sets: NTK_DATA_DIR=DIR make test)
	$(PYTEST) -m 'not exhaustive' --ignore=tests/experiments

test-experiments: setup  ## the tests of the studies, which are in no wheel
	$(PYTEST) -m 'not exhaustive' tests/experiments

test-all: setup   ## all, those that repeat on further networks, too, compiled as a user does
	JAX_DISABLE_MOST_OPTIMIZATIONS=false $(PYTEST)

test-fast: setup  ## the tests that take seconds
	$(PYTEST) -m 'not slow and not exhaustive' --ignore=tests/experiments

lint: setup       ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup      ## pyright
	$(BIN)/pyright

format: setup     ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test test-experiments  ## what CI runs

clean:           ## remove the environment and every cache (never runs/)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
