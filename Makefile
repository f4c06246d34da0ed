# Two commands are enough: `make run` and `make test`. Each makes .venv when it is missing or out of date.

PYTHON ?= python3
PROMPT ?= The old house stood at the end of the road, and

ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: run test lint test-slow test-kill test-peers bench bench-peers bench-report clean help

run: .venv/.installed  ## complete a prompt with the model that ships in the package
	@$(BIN)/gpt2 generate "$(PROMPT)" --max-tokens 120

test: .venv/.installed-test  ## the test suite: without a GPU, without other programs' environments, without what takes minutes
	@$(BIN)/python -m pytest -n 2 --dist worksteal -q --ignore=tests/peers -m "not slow and not gpu and not kill" $(ARGS)

test-slow: .venv/.installed-test  ## what takes minutes and 16 GB: the four sizes whole
	@$(BIN)/python -m pytest -q --ignore=tests/peers -m slow $(ARGS)

test-kill: .venv/.installed-test  ## training killed at random moments, and on a disk that fills up; minutes (KILLS=300: more)
	@$(BIN)/python -m pytest -q -s -m kill tests/kill $(ARGS)

lint: .venv/.installed-test  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test-peers: .venv-peers/.installed  ## tests against programs that need an environment of their own (TensorFlow)
	@.venv-peers/bin/python -m pytest -q tests/peers $(ARGS)

bench: .venv/.installed-test  ## speed beside every peer that is installed, then training; an hour (ARGS=--quick: minutes)
	@$(BIN)/python -m benchmarks.speed $(ARGS)
	@$(BIN)/python -m benchmarks.training

bench-peers: .venv/.installed-test  ## the programs that bench compares, each in an environment of its own: 5 GB, ten minutes
	@$(BIN)/python -m benchmarks.peers.install

bench-report: .venv/.installed-test  ## docs/performance.md and its picture from the newest figures
	@$(BIN)/python -m benchmarks.report

clean:  ## delete the environments and what tools leave behind
	rm -rf .venv .venv-peers .venv-bench dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

.venv/pyvenv.cfg:
	@$(PYTHON) -m venv .venv

.venv/.installed: .venv/pyvenv.cfg pyproject.toml constraints.txt hatch_build.py gpt2/runners/step.c
	@echo "installing into .venv (PyTorch is large: minutes on a slow line)" >&2
	@$(INSTALL) -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	@$(INSTALL) -e '.[test]'
	@touch $@

.venv-peers/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,openai]'
	@touch $@
