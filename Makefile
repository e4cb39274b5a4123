# The two commands of the README; everything they need is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Torch and its neighbours start a thread for each core and process; a sweep runs several processes.
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test lint install install-dev clean

quickstart: install  ## a small real sweep on generated images, and its report
	$(BIN)/vitlight data synth data/synthetic --config experiments/synthetic_32px.yaml
	$(BIN)/vitlight sweep run sweeps/quickstart.yaml --jobs 2
	$(BIN)/vitlight report runs/quickstart

test: install-dev lint  ## lint, types, tests
	$(BIN)/python -m pytest -n auto

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/.installed

install-dev: .venv/.installed-dev

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitlight needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
