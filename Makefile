# The commands of this repository. Everything is installed into .venv, from locked versions with hashes.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Which build of torch: cuda where there is an NVIDIA driver, else cpu; `make env TORCH=cpu` overrules.
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version),cuda,cpu)
# PyPI's torch for Linux is the CUDA build. The CPU build, 200 MB in place of gigabytes, comes from the folder of wheels
# that pip or uv is told of, if torch lies there, else from PyTorch's own index.
comma := ,
FOLDERS := $(subst $(comma), ,$(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS)))
CPU_TORCH := $(firstword $(patsubst %,UV_FIND_LINKS=%,$(dir $(wildcard $(addsuffix /torch-*,$(FOLDERS))))) UV_TORCH_BACKEND=cpu)
UV_SYNC := env -u UV_FIND_LINKS -u UV_TORCH_BACKEND $(if $(filter cpu,$(TORCH)),$(CPU_TORCH)) $(BIN)/uv pip sync
# Nothing that runs here reports to anybody; bentos lie with the other results.
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export BENTOML_HOME ?= $(CURDIR)/outputs/bentoml
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help env demo cluster-demo joint test test-slow smoke test-engines test-cluster test-cluster-slow lint schema manifests images lock shell

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

env: .venv/.ready-$(TORCH)  ## install everything into .venv

.venv/.ready-$(TORCH): requirements/all-$(TORCH).txt pyproject.toml $(BIN)/uv
	$(UV_SYNC) --quiet --python $(BIN)/python --compile-bytecode --require-hashes $<
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	rm -f .venv/.ready*
	touch $@

$(BIN)/uv: requirements/uv.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	touch $@

demo: env  ## run everything once: data, training, evaluation, registry, package, one answered request
	$(BIN)/vargpt demo

cluster-demo: env  ## the same on a cluster: images, platform, pipeline as jobs, the deployed champion's answer
	CLUSTER_SCRIPT=$(CLUSTER_SCRIPT) PYTHON=$(CURDIR)/$(BIN)/python k8s/cluster-demo.sh

joint: env  ## train the optional stage that learns decoder, projectors and language model together
	$(BIN)/python -m training.launching joint
	$(BIN)/vargpt evaluate --model outputs/joint/model --metrics metrics/joint.json --plots outputs/joint/plots

# One process for each core, each with whole test files: fixtures of a module (servers, trained models) are made once.
PARALLEL = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

test: env  ## run the tests (test-slow, smoke, test-engines and test-cluster come on top)
	$(PARALLEL)

test-slow: env  ## run those that train, serve and package for longer
	$(PARALLEL) -m "slow and not cluster and not gpu and not browser and not pipeline and not engines"

smoke: env  ## test the whole pipeline at its smallest size (minutes)
	$(BIN)/python -m pytest -m pipeline tests/test_pipeline_smoke.py

test-engines: env  ## test every engine with one, two and four processes (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m engines tests/training/engines

# A script that brings a cluster up and takes it down, or KUBECONFIG; see tests/k8s/conftest.py.
CLUSTER_SCRIPT ?= $(wildcard ../shared/kube/cluster.sh)

ON_CLUSTER = CLUSTER_SCRIPT=$(CLUSTER_SCRIPT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster -rs

test-cluster: env  ## test manifests, placement and training on a real cluster (skipped without one, fails if CLUSTER=required)
	$(ON_CLUSTER) tests/k8s/test_validation.py tests/k8s/test_placement.py tests/k8s/test_cluster.py

test-cluster-slow: env  ## test the whole, platform, roles, submission, deployment, scaling and faults there (over an hour)
	$(ON_CLUSTER) tests/k8s/test_whole_pipeline.py tests/k8s/test_platform.py tests/k8s/test_roles.py tests/k8s/test_images.py tests/k8s/test_submission.py tests/k8s/test_deployment.py tests/k8s/test_traffic_split.py tests/k8s/test_scaling.py tests/k8s/test_faults.py

lint: env  ## check style with ruff, names and signatures with mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

schema: env  ## write the JSON schema of params.yaml, for editors
	$(BIN)/python -c 'from training.params_file import write_json_schema; write_json_schema()'

manifests: env  ## render k8s/ from params.yaml and k8s/images/kustomization.yaml (python -m training.cluster --check compares)
	$(BIN)/python -m training.cluster

# Names are those of k8s/images/kustomization.yaml: make images BUILD="podman build" TORCH=cpu REGISTRY=registry.example/vargpt
BUILD ?= docker build
REGISTRY ?= localhost
IMAGE_TAG ?= 0.1.0
# What images are built from; with a digest, the same again: BASE=python:3.11-slim@sha256:... DEBIAN_BASE=debian:12-slim@sha256:...
BASE ?=
DEBIAN_BASE ?=
ABOUT = $(shell sh k8s/images/about.sh $(TORCH)) $(if $(filter cpu,$(TORCH)),--build-arg UV_TORCH_BACKEND=cpu)
ON = $(if $(1),--build-arg BASE=$(1))

# Images are for the cluster's machines, not for this one.
images: TORCH = cuda
images:  ## build the container images (TORCH=cpu or cuda, the default; REGISTRY, BASE, DEBIAN_BASE)
	for image in training packaging serving; do \
	  $(BUILD) --file k8s/images/Dockerfile --target $$image --build-arg TORCH=$(TORCH) $(ABOUT) $(call ON,$(BASE)) \
	    --tag $(REGISTRY)/vargpt-$$image:$(IMAGE_TAG) . || exit; \
	done
	$(BUILD) --file k8s/images/mlflow.Dockerfile $(ABOUT) $(call ON,$(BASE)) --tag $(REGISTRY)/vargpt-mlflow:$(IMAGE_TAG) .
	for image in postgres haproxy; do \
	  $(BUILD) --file k8s/images/$$image.Dockerfile $(ABOUT) $(call ON,$(DEBIAN_BASE)) \
	    --tag $(REGISTRY)/vargpt-$$image:$(IMAGE_TAG) . || exit; \
	done

lock: $(BIN)/uv  ## resolve pyproject.toml and write requirements/*.txt (UPGRADE="--upgrade-package mlflow")
	CPU_TORCH="$(CPU_TORCH)" requirements/lock.sh $(UPGRADE)

shell: env  ## start a shell that finds vargpt, dvc and python; or: source .venv/bin/activate
	@VIRTUAL_ENV=$(CURDIR)/.venv $${SHELL:-/bin/sh}
