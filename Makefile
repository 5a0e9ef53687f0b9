# `make` lists what there is. Everything is installed into .venv, on first use and again when its lists change.
#   make sim ARGS="--sparsity 0.9"      make test PYTHON=python3.12

PYTHON ?= python3
ARGS ?=
PY = .venv/bin/python

.PHONY: help sim test lint format clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

sim: .venv/installed ## a live loop prunes its own controller and swaps it in, in about a minute; results in out/
	.venv/bin/nncontrol-prune sim --headless $(ARGS)

test: lint ## ruff, mypy and pytest
	$(PY) -m pytest $(ARGS)

lint: .venv/installed-dev ## ruff and mypy
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: .venv/installed-dev ## let ruff rewrite what it can
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format

clean: ## remove what was installed, built and cached; out/ stays
	rm -rf .venv build install log *.egg-info .mypy_cache .pytest_cache .ruff_cache

# A stamp is touched last, so that an installation that was cut short goes on with the next make.
.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, and \
	$(PYTHON) is not: $$($(PYTHON) --version 2>&1). Name one that is: make PYTHON=python3.12"; exit 1; }
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	-$(PY) -m pip install -qq --upgrade pip # the one that Python 3.10 brings takes minutes to choose versions
	@touch $@

.venv/installed: setup.py setup.cfg tools/install_torch.sh | .venv/created
	sh tools/install_torch.sh $(PY)
	$(PY) -m pip install -qq --editable .
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install -qq --editable '.[test]' --requirement requirements-dev.txt
	@touch $@
