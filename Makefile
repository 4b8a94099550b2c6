# What a user types. Everything is installed into .venv, from pinned versions.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Where this machine keeps wheels of its own, if it does: uv does not read pip's settings.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: help env test lint test-cluster

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

env: .venv/.ready  ## install everything into .venv

.venv/.ready: requirements/all.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirement requirements/all.txt
	touch $@

test: env  ## run the whole suite
	$(BIN)/python -m pytest

lint: env  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
