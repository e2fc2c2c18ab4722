# make demo | test | lint | bench | test-slow | test-device | docs | crypten | clean.  Needs git, make and Python 3.11, 3.12 or 3.13 with venv.
# PYTHON=python3.12 chooses the interpreter, PIP_ARGS="--extra-index-url URL" adds options to pip (an index of CPU builds of torch, say).
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BENCH ?=
DEVICE ?= cuda

BIN := $(VENV)/bin
TOY := $(wildcard tests/plugins/toy/pyproject.toml)
INPUTS := pyproject.toml constraints.txt $(TOY)
# The stamp is named after what was installed from: a changed file, a new plugin or a moved checkout redoes the set-up,
# or a new entry point would stay invisible.
STAMP := $(VENV)/.setup-$(shell { echo '$(CURDIR)'; cat $(INPUTS); } | cksum | cut -d ' ' -f 1)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

.PHONY: demo test test-slow test-device lint bench docs crypten setup clean
.DEFAULT_GOAL := demo

demo: setup
	$(BIN)/privtensors demo

test: lint
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m slow

# The mpc suite on another device than the CPU; without one the default tests run it on an emulated device.
test-device: setup
	PRIVTENSORS_TEST_DEVICE=$(DEVICE) $(BIN)/python -m pytest tests/accelerator/device_suite.py

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

bench: setup
ifeq ($(strip $(BENCH)),)
	$(BIN)/python -m tests.bench dispatch
	$(BIN)/python -m tests.bench mpc --tokens 32,128
else
	$(BIN)/python -m tests.bench $(BENCH)
endif

docs: setup
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	$(BIN)/python -m sphinx -W -b html docs build/docs

# The plugin is put beside the environment, not into it: only the two commands that need it see its entry points.
crypten: setup
	$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --no-deps --upgrade --target build/crypten ./plugins/crypten
	PYTHONPATH="$(CURDIR)/build/crypten" $(BIN)/python -m privtensors backends install crypten
	PYTHONPATH="$(CURDIR)/build/crypten" $(BIN)/python -m pytest plugins/crypten/tests -m crypten

setup: $(STAMP)

$(STAMP):
	@if [ -x $(BIN)/python ]; then found=$(BIN)/python; else found='$(PYTHON)'; fi; \
	"$$found" -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "privtensors needs Python 3.11, 3.12 or 3.13, but $$found is: $$("$$found" --version 2>&1 | head -n 1)" >&2; \
	  echo "Choose another: make PYTHON=python3.12 $(MAKECMDGOALS)  (after 'make clean' if $(VENV) was made with the wrong one)" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[demo,dev]' $(if $(TOY),-e $(dir $(TOY)))
	@rm -f $(VENV)/.setup-*
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
