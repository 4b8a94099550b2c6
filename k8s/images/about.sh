#!/bin/sh
# Prints the build arguments that become labels of an image: which code it holds, and which locks. TORCH: cpu or cuda.
set -eu
cd "$(dirname "$0")/../.."
commit=unknown dirty=unknown
if [ -e .git ] && commit=$(git rev-parse HEAD); then
  # All that images copy or are made by.
  changes=$(git status --porcelain -- model training serving requirements params.yaml data.dvc .dvc pyproject.toml k8s/images)
  dirty=$([ -n "$changes" ] && echo true || echo false)
fi
lock=$(cat requirements/*-"${1:?cpu or cuda}".txt requirements/mlflow.txt | sha256sum | cut -d' ' -f1)
echo "--build-arg GIT_COMMIT=$commit --build-arg GIT_DIRTY=$dirty --build-arg LOCK_SHA256=$lock"
