# Each verb makes .venv and installs when needed; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-system bench lint check clean

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

# The tests again on the newest Python at hand, from a clean install of its own.
NEWEST ?= $(shell for p in python3.14 python3.13 $$(ls -rd $(HOME)/.pyenv/versions/3.1[3-9].*/bin/python 2>/dev/null) python3.12; do "$$p" -c '' 2>/dev/null && echo "$$p" && break; done)

test-system: .venv-newest/installed
	.venv-newest/bin/python -m pytest

.venv-newest/installed: pyproject.toml
	test -n '$(NEWEST)' || { echo 'a Python newer than 3.11 is needed: make test-system NEWEST=python3.13' >&2; exit 1; }
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-newest/bin/pip install --quiet --editable . --group bench
	touch $@

bench: .venv/installed
	$(BIN)/python -m benchmarks

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: test lint

clean:
	rm -rf .venv data_science
