#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/{all,base,training,serving}-{cpu,cuda}.txt, with hashes, for Python 3.11 to 3.13.
#
# Versions stay as they are unless pyproject.toml forces others; arguments go to uv (--upgrade-package mlflow). CPU_TORCH
# says where the CPU build of torch comes from, as `make lock` finds it. Hashes of wheels that this place does not offer
# (a folder has torch for one Python only) stay as they were while the version stays; a new version of torch is
# therefore locked on a machine that reaches PyTorch's index.
set -euo pipefail
cd "$(dirname "$0")"

resolve() {
  uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command 'make lock' "$@" >/dev/null
}

# From the lock of everything: a part of it has the same versions.
part() {
  local part=$1 torch=$2
  shift 2
  cp "all-$torch.txt" "$part-$torch.txt"
  resolve ../pyproject.toml --constraint uv.in --output-file "$part-$torch.txt" "$@"
}

unset UV_FIND_LINKS UV_TORCH_BACKEND
everything=(--extra train --extra cluster --extra serve --extra package --extra deepspeed --extra dev)
resolve uv.in --output-file uv.txt
resolve mlflow.in --constraint uv.in --output-file mlflow.txt "$@"
(
  export "$CPU_TORCH"
  resolve ../pyproject.toml --constraint uv.in --constraint torch-cpu.in --output-file all-cpu.txt "${everything[@]}" "$@"
  part base cpu --constraint torch-cpu.in
  part training cpu --constraint torch-cpu.in --extra train
  part serving cpu --constraint torch-cpu.in --extra serve
)
resolve ../pyproject.toml --constraint uv.in --output-file all-cuda.txt "${everything[@]}" "$@"
part base cuda
part training cuda --extra train --extra deepspeed
part serving cuda --extra serve
