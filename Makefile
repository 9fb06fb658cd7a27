# Everything a fresh machine needs beyond Python 3.11 and make. `make` alone lists the targets.

SHELL := /bin/sh
VENV := .venv
# `python -m`, not the scripts in bin: those name the folder that they were installed in and break when it moves.
PYTHON := $(VENV)/bin/python

# The name of the stamp holds the lock file's sum. So another lock file installs anew, and a new time stamp
# on the same file (another branch was checked out) does not.
STAMP := $(VENV)/installed-$(shell cksum requirements.lock | tr ' ' '-' | cut -d- -f1,2)

# dvc.yaml's commands say `python`: the one of this folder comes first.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# One that is activated elsewhere must not come into it; and each stage, each test would compile all code anew.
unexport VIRTUAL_ENV PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
NAME := minilm

.PHONY: help install repro report status smoke example serve test test-slow check lock

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with exactly the versions of requirements.lock

repro: $(STAMP) ## build what has changed: data, teacher, models, metrics, report
	$(PYTHON) -m flows.mend --check
	$(PYTHON) -m tasks.validate
	$(PYTHON) -m dvc repro
	$(PYTHON) -m tasks.report.page

# AGAINST=main: what this branch changed stands on the page too.
report: $(STAMP) ## all models on one page, report/index.html, opened where there is a screen (AGAINST=main)
	$(PYTHON) -m tasks.report.page --open $(if $(AGAINST),--against '$(AGAINST)')

status: $(STAMP) ## what `make repro` would build, and why; records the code first, in a second
	$(PYTHON) -m flows.mend --check
	$(PYTHON) -m dvc repro --quiet code
	$(PYTHON) -m dvc status

smoke: $(STAMP) ## the same pipeline on a small data set in a throw-away clone, in about two minutes
	$(PYTHON) -m tests.smoke

example: $(STAMP) ## the same pipeline on the networks and data of examples/NAME, in a throw-away clone (NAME=minilm)
	$(PYTHON) -m tests.example $(NAME)

PORT := 4200
# PASSWORD=off: for a server that something else guards.
PASSWORD := on
serve: $(STAMP) ## a Prefect server, the deployments of prefect.yaml and a worker, until Ctrl-C (PORT=4200)
	$(PYTHON) -m flows.serve --port $(PORT) --password $(PASSWORD)

# Tests that share a server or a built pipeline run in one process one after another: tests/conftest.py.
JOBS := 2
PYTEST = $(PYTHON) -m pytest --numprocesses $(JOBS) --dist loadscope --durations 10 --durations-min 1

test: $(STAMP) ## run the tests, two at a time (JOBS=2), and say which ten took longest
	$(PYTEST)

test-slow: $(STAMP) ## run the tests that take minutes, and properties with four times the examples
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile thorough

check: $(STAMP) ## check format, style and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy decant tasks flows .ci

# Finds a Python 3.11 as `python3.11` or as `python3`.
FIND_PYTHON = for name in python3.11 python3; do \
	if "$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then found=$$name; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	echo "error: no Python 3.11 here: install it (Debian: apt install python3.11 python3.11-venv;" >&2; \
	echo "       macOS: brew install python@3.11; anywhere: uv python install 3.11) and run make again" >&2; exit 1; fi

# The stamp comes last: an installation that was interrupted has none and is begun again.
$(STAMP):
	@$(FIND_PYTHON); \
	echo "Installing into $(VENV) with $$found (minutes, once)"; \
	"$$found" -m venv --clear $(VENV) || { echo "error: could not make $(VENV) (Debian: apt install python3.11-venv)" >&2; exit 1; }
	$(PYTHON) -m pip install --requirement requirements.lock
	@touch $@

# UPGRADE=<package> or UPGRADE=all: newer versions; without it each package keeps the version that it has.
lock: ## write requirements.lock anew from pyproject.toml
	@set -e; $(FIND_PYTHON); \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$$found" -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install --quiet --constraint requirements.lock packaging; \
	"$$folder/venv/bin/python" .ci/lock.py $(UPGRADE); \
	rm -rf build decant.egg-info
