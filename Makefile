# make pretrain   a first run, on text that every machine has
# make serve      serves the first run over HTTP, on this machine alone
# make test       the tests; make lint: format, lint and types
PYTHON ?= python3
BIN := .venv/bin

.PHONY: pretrain serve test lint format

pretrain: .venv/requirements
	$(BIN)/python -m spanbert_jax.main --config configs/tiny.py

serve: .venv/requirements .venv/requirements-serve | runs/tiny
	$(BIN)/python -m spanbert_jax.serve --checkpoint runs/tiny

runs/tiny:
	$(MAKE) pretrain

test: .venv/requirements-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/requirements-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/requirements-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed (TensorFlow has no newer wheels); name one with make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

.venv/requirements .venv/requirements-dev .venv/requirements-serve .venv/requirements-tpu: .venv/requirements%: requirements%.txt requirements.txt requirements-torch.txt requirements-spans.txt requirements-serve.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --use-pep517 -r $<
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@

# Apache Beam holds libraries back, so it has an environment of its own.
.venv-beam/requirements-beam: requirements-beam.txt
	$(PYTHON) -m venv .venv-beam
	.venv-beam/bin/python -m pip install --disable-pip-version-check -r $<
	.venv-beam/bin/python -m pip install --disable-pip-version-check --no-deps --config-settings editable_mode=compat --editable .
	touch $@
