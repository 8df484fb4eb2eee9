# Two commands on a fresh machine: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lint conformance bench clean

demo: $(READY)   ## three machines on loopback: one fetches a real model from a hub, two from each other; load it
	$(BIN)/python -m tests.demo

test: lint       ## every check and every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)   ## format, style, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

conformance: $(READY)  ## real clients of every supported version through the gateway; sets up an environment for each
	$(BIN)/python -m tests.conformance.environments
	CONFORMANCE=all $(BIN)/python -m pytest -n 2 tests/conformance

bench: $(READY)  ## compare with what a user would run instead; prints ratios
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) $(VENV)-conformance .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edgecdn needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test]'
	touch $(READY)
