# make quickstart   train the quickstart recipe (W&B offline)
# make test         run the audit, lint, types, docs and all tests
# make audit        look for known vulnerabilities in the installed packages; skipped without pip-audit or a network
# make docs         build the documentation in build/docs/site; a broken link is an error
# make realistic    train every kind of model and write the table of docs/models.md (hours)
# make bench        run every benchmark
# make torture      kill short runs at random moments and compare them with undisturbed ones (KILLS=20 SEED=1)
# make soak         run for MINUTES=30 and compare memory, handles, disk and step time of its first and last tenth
# make gpu          run the tests and benchmarks that need a CUDA device
# make install      set up .venv
#
# Each target sets up .venv first if it is missing or out of date.
# PYTHON=python3.12 selects the Python for .venv. ACCELERATOR=cpu or ACCELERATOR=cuda overrides the detected one.

SHELL := /usr/bin/env bash
BIN := .venv/bin
STAMP := .venv/installed
BENCHMARKS = $(sort $(wildcard benchmarks/[a-z]*.py))

.PHONY: install quickstart test audit lint docs realistic bench gpu torture soak

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
test: audit lint docs
	$(BIN)/pytest tests -n auto --maxprocesses=4 --ignore=tests/integration --ignore=tests/realistic --ignore=tests/gpu
	$(BIN)/pytest tests/integration -n 2 --dist loadfile
	$(BIN)/pytest tests/realistic

audit: $(STAMP)
	-$(BIN)/python .ci/audit.py

docs: $(STAMP)
	$(BIN)/python docs/build_site.py

realistic: $(STAMP)
	$(BIN)/python -m tests.realistic.matrix

bench: $(STAMP)
	set -e; for file in $(BENCHMARKS); do $(BIN)/python -m "benchmarks.$$(basename "$$file" .py)"; done

KILLS ?= 20
SEED ?= 1
torture: $(STAMP)
	$(BIN)/python -m tests.torture.torture --kills $(KILLS) --seed $(SEED)

MINUTES ?= 30
soak: $(STAMP)
	$(BIN)/python -m tests.torture.soak --minutes $(MINUTES)

gpu: export HF_HUB_OFFLINE = 1
gpu: $(STAMP)
	$(BIN)/python -m benchmarks.gpu.device
	$(BIN)/pytest tests/gpu
	$(BIN)/python -m benchmarks.gpu.step
