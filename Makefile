# backdrive on a bare machine: `make demo` or `make test` first, nothing before them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
READY := .venv/.ready
CODE := cas mount cli tests fixtures/make_server.py
JOBS ?= auto
ARGS ?=

.PHONY: setup demo test lint bench clean help

setup: $(READY) ## install what is missing: system packages (as root, with apt), .venv, backdrive in it
	@:

$(READY): pyproject.toml .ci/setup
	@bash .ci/setup

demo: $(READY) ## protect a small file server, lose files, mount a point, get them back (KEEP=1 keeps it all)
	@PATH="$(CURDIR)/.venv/bin:$$PATH" bash fixtures/demo.sh

test: $(READY) ## every test; ARGS="-k name" for some, JOBS=0 for one process
	@$(PY) -m pytest -n $(JOBS) $(ARGS)

lint: $(READY) ## ruff, mypy --strict, import contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy --strict $(CODE)
	@.venv/bin/lint-imports --no-logo

bench: $(READY) ## print figures of this machine; they pass or fail nothing
	@$(PY) -m tests.bench $(ARGS)

clean: ## remove everything that make and the tools have made here, .venv too
	@rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find cas mount cli tests fixtures -type d -name __pycache__ -prune -exec rm -rf {} +

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15
