# Holdfast's verbs. `make` alone prints them. Each works from a fresh clone with no other step.
# What sets up talks on standard error, so that a verb's own output stays clean.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SUFFIXES:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

# A Python 3.11 or newer to make the environment with.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCKS := infra/requirements
TAP := host_agent/tap
TAP_BINARY := $(TAP)/target/release/holdfast-tap
TAP_SOURCES = $(shell find $(TAP) -name target -prune -o -type f \( -name '*.rs' -o -name 'Cargo.*' \) -print)
# Two test processes by default: each may run real servers of its own.
JOBS ?= 2
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help
help:  ## print the verbs
	@awk 'BEGIN { FS = ":.*## " } /^[a-z][a-z-]*:.*## / { printf "  %-14s %s\n", $$1, $$2 }' \
	  $(MAKEFILE_LIST)

.PHONY: deps
deps:  ## install the Debian packages that are missing (infra/apt.txt); sudo if not root
	@infra/deps >&2

.PHONY: venv
venv: $(VENV)/.stamp-projects  ## make .venv from the locked dependencies, both projects editable

$(VENV)/bin/python:
	@if [[ -z "$(PYTHON)" ]]; then echo "Python 3.11 or newer is needed; run 'make deps'" >&2; exit 1; fi
	echo "venv: making $(VENV) with $(PYTHON)" >&2
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")' >&2
	"$(PYTHON)" -m venv $(VENV) >&2

$(VENV)/.stamp-deps: $(LOCKS)/dev.lock | $(VENV)/bin/python
	@echo "venv: installing the locked dependencies" >&2
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/dev.lock >&2
	touch $@

$(VENV)/.stamp-projects: $(VENV)/.stamp-deps pyproject.toml host_agent/pyproject.toml
	@echo "venv: installing holdfast-agent and holdfast, editable" >&2
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index \
	  --editable ./host_agent --editable . >&2
	touch $@

.PHONY: tap
tap: $(BIN)/holdfast-tap  ## compile the tap and link it into .venv

$(TAP_BINARY): $(TAP_SOURCES)
	@echo "tap: compiling" >&2
	cd $(TAP)
	../../infra/cargo build --release --locked >&2
	touch target/release/holdfast-tap

$(BIN)/holdfast-tap: $(TAP_BINARY) | $(VENV)/bin/python
	@ln -sfn ../../$(TAP_BINARY) $@

.PHONY: build
build: venv tap  ## build both wheels into dist/
	@rm -rf dist
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist host_agent >&2
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist . >&2
	ls -1 dist

.PHONY: demo
demo: deps venv tap  ## protect, damage, delete and recover a real database; ARGS=--json for the result
	@$(BIN)/python -m infra.demo $(ARGS)

.PHONY: dev-keys
dev-keys: venv  ## write throw-away keys, certificates and configuration files; DIR=path
	@if [[ -z "$(DIR)" ]]; then echo "Say where: make dev-keys DIR=path" >&2; exit 2; fi
	$(BIN)/python -m infra.dev_keys "$(DIR)"

.PHONY: test
test: deps venv tap  ## run the tests of both languages; ARGS for pytest
	@(cd $(TAP) && ../../infra/cargo test --quiet --locked)
	@$(BIN)/python -m pytest -m alone $(ARGS) || (($$? == 5))  # 5: none was asked for
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not soak and not alone" --durations=40 $(ARGS)

.PHONY: check
check: venv  ## style, types, import contracts, tidiness
	@infra/check

.PHONY: format
format: venv  ## rewrite the sources in the house style
	@$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	cd $(TAP) && ../../infra/cargo fmt

.PHONY: bench
bench: deps venv tap  ## measure every figure of the README's table
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: soak
soak: deps venv tap  ## the long lanes and their summary; LANE=ci (an hour) or nightly
	@$(BIN)/python -m tests.soak $(ARGS)

.PHONY: invariants
invariants: venv  ## print each invariant with the tests that name it; ends 1 if one lacks any
	@$(BIN)/python -m tests.invariants $(ARGS)

.PHONY: planted
planted: deps venv tap  ## plant each bug of the catalogue; ends 0 only if the tests find them all
	@$(BIN)/python -m tests.planted $(ARGS)

.PHONY: fuzz
fuzz: venv  ## fuzz the decoders for a minute, guided by coverage; ARGS for libFuzzer
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCKS)/fuzz.lock >&2
	$(BIN)/python -m tests.wire.fuzz_frame -max_total_time=60 $(ARGS)

.PHONY: locks
locks: venv  ## resolve the dependencies anew and write the locks
	@infra/lock-requirements $(BIN)

.PHONY: clean
clean:  ## remove everything that the verbs made
	@rm -rf $(VENV) dist build .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache $(TAP)/target
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
