# The two commands of the README; everything they need is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint install install-dev clean

quickstart: data/quickstart/test/index  ## a small real sweep on generated images, and its report
	$(BIN)/vitlight sweep run sweeps/quickstart.yaml --jobs 2
	$(BIN)/vitlight report runs/quickstart

data/quickstart/test/index: | install
	$(BIN)/vitlight data synth data/quickstart --num-train 10_000 --num-test 2_000 --difficulty 0.1

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
	# What tests compare with. Out of site-packages: there torchmetrics would find torchvision, which has no build for every torch.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/reference timm==1.0.31 torchvision==0.28.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/reference-hf transformers==5.23.0 tokenizers==0.23.1 regex==2026.11.15
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
