# make quickstart   install if need be, then train the quickstart recipe (W&B offline)
# make test         install if need be, then lint, types and all tests
# make realistic    install if need be, then train every kind of model, and write the table of docs/models.md (hours)
# make bench        install if need be, then every benchmark
# make install      only set up .venv
#
# PYTHON=python3.12 picks the Python that .venv is made from; ACCELERATOR=cpu or cuda overrides what is detected.

SHELL := /usr/bin/env bash
BIN := .venv/bin
STAMP := .venv/installed
BENCHMARKS = $(sort $(wildcard benchmarks/[a-z]*.py))

.PHONY: install quickstart test lint realistic bench

install: $(STAMP)

$(STAMP): pyproject.toml launch/install.sh
	launch/install.sh
	touch $@

quickstart: $(STAMP)
	$(BIN)/rlkl train recipes/quickstart.yaml

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

test: export HF_HUB_OFFLINE = 1
test: export WANDB_MODE = offline
test: lint
	$(BIN)/pytest tests --ignore=tests/integration --ignore=tests/realistic
	$(BIN)/pytest tests/integration
	$(BIN)/pytest tests/realistic

realistic: $(STAMP)
	$(BIN)/python -m tests.realistic.matrix

bench: $(STAMP)
	set -e; for file in $(BENCHMARKS); do $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)"; done
