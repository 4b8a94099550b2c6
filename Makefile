# What a user types. Everything is installed into .venv, from pinned versions.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Where this machine keeps wheels of its own, if it does: uv does not read pip's settings.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Nothing that runs here reports to anybody; bentos lie with the other results.
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export BENTOML_HOME ?= $(CURDIR)/outputs/bentoml
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env demo joint test smoke schema lint test-cluster

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

env: .venv/.ready  ## install everything into .venv

.venv/.ready: requirements/all.txt pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --requirement requirements/all.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: env  ## from raw data to an answered request; the second time only what has changed
	$(BIN)/vargpt demo

joint: env  ## the optional recipe: decoder, projectors and language model together, with replay
	$(BIN)/python -m training.launching joint
	$(BIN)/vargpt evaluate --model outputs/joint/model --metrics metrics/joint.json --plots plots/joint

test: env  ## run the whole suite
	$(BIN)/python -m pytest

smoke: env  ## the demo at the smallest size, twice, in a copy of the repository
	$(BIN)/python -m pytest -m pipeline tests/test_pipeline_smoke.py

schema: env  ## generate the JSON schema of params.yaml, for editors
	$(BIN)/python -c 'from training.params import write_json_schema; write_json_schema()'

lint: env  ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# A script that brings a cluster up and takes it down; see tests/test_k8s_cluster.py.
CLUSTER_SCRIPT ?= $(wildcard ../shared/kube/cluster.sh)

test-cluster: env  ## run stages as PyTorchJobs on a real cluster
	CLUSTER_SCRIPT=$(CLUSTER_SCRIPT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -rs tests/test_k8s_cluster.py
