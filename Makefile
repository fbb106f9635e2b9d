# Each verb makes .venv and installs when needed; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench lint check clean

# Installed again only when what is to be installed has changed.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("adk-eventstore needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

demo: .venv/installed
	$(BIN)/python -m examples.data_science.demo

test: .venv/installed
	$(BIN)/python -m pytest

bench: .venv/installed
	$(BIN)/python -m benchmarks

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: test lint

clean:
	rm -rf .venv data_science
