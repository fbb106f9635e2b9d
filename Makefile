# Each verb makes .venv and installs when needed; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-system browser bench bench-scale bench-rebuild bench-page lint check clean

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

# The adapter on the oldest ADK; all tests again on the newest Python at hand, from a clean install
# of its own; then the tests of whole systems: ADK's page in a real browser.
NEWEST ?= $(shell for p in python3.14 python3.13 $$(ls -rd $(HOME)/.pyenv/versions/3.1[3-9].*/bin/python 2>/dev/null) python3.12; do "$$p" -c '' 2>/dev/null && echo "$$p" && break; done)

test-system: browser .venv-newest/installed .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(OLDEST) tests/adk_adapter
	.venv-newest/bin/python -m pytest
	.venv-newest/bin/python -m pytest tests/system

.venv-newest/installed: pyproject.toml
	test -n '$(NEWEST)' || { echo 'a Python newer than 3.11 is needed: make test-system NEWEST=python3.13' >&2; exit 1; }
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-newest/bin/pip install --quiet --editable . --group system
	touch $@

# The oldest ADK that is supported, on the oldest Python: without the Runner's features that it does
# not have, without the reference, which is about the newest, and without its dependencies' warnings.
OLDEST_ADK := 2.0.0
OLDEST := -W ignore::DeprecationWarning -W ignore::UserWarning -k 'not TestAdk' \
          --ignore tests/adk_adapter/test_runner_features.py

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-oldest/bin/pip install --quiet --editable . --group bench 'google-adk[db]==$(OLDEST_ADK)'
	touch $@

# Debian's packages of the two come from one source, so they fit each other.
browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium chromium-driver; } || \
	  { echo 'make test-system needs chromium and chromedriver: as root, apt-get install chromium chromium-driver' >&2; exit 1; }

# The table of goals; `make bench JSON=benchmarks/results/table.json` keeps the figures there.
bench: .venv/installed
	$(BIN)/python -m benchmarks $(if $(JSON),--json $(JSON))

# How time grows with size, up to five million events: ten minutes and 20 GB of disk. Smaller:
# make bench-scale SCALE='--events 50000 --sessions 1000 --longest 10000'
bench-scale: .venv/installed
	$(BIN)/pip install --quiet --group scale
	$(BIN)/python -m benchmarks.growth $(SCALE)

# How fast the tables are made anew, and what it costs those who write meanwhile: two minutes.
bench-rebuild: .venv/installed
	$(BIN)/python -m benchmarks.rebuild $(if $(JSON),--json $(JSON))

# Writes the kept results into docs/benchmarks.md, and draws its plot.
bench-page: .venv/installed
	$(BIN)/pip install --quiet --group scale
	$(BIN)/python -m benchmarks.document

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: test lint

clean:
	rm -rf .venv data_science
