# make quickstart   environment, install, the quickstart suite on the bundled model, its leaderboard
# make test         environment, install with test extras, ruff, mypy and the test suite
# make slow         tests that take long, and that the others leave little doubt about
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: quickstart test slow lint clean

quickstart: $(VENV)/.installed
	$(BIN)/lrbench run suites/quickstart.yaml

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow"

slow: $(VENV)/.installed-dev
	$(PIP) 'ray<3'
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and alone: the constraint then holds whatever another package would like to pull in.
$(VENV)/.installed: $(SOURCES)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lrbench needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
