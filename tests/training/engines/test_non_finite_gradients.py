"""Laws of gradients that are not finite: whatever engine, nothing is learned from them or spoilt."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.volume import ROOT

# One group of processes a Python process: DeepSpeed keeps one.
PROGRAM = """
import json, math, os, sys
from datetime import timedelta

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from torch import nn

from training.engines.plain import PlainEngine
from training.engines.zero import ZeroEngine

kind, precision, offload, bad = json.loads(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
seconds = timedelta(seconds=60)
if kind == "plain":
    engine = PlainEngine(torch.device("cpu"), precision, 1.0, seconds)
else:
    engine = ZeroEngine(torch.device("cpu"), int(kind[-1]), precision, 1.0, seconds, offload)
engine.prepare(
    model, list(model.named_parameters()), lambda named: torch.optim.AdamW([p for _, p in named], lr=0.1)
)


def step(number, factor):
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(number))
    engine.backward(engine.forward(inputs).float().square().mean() * factor, True)
    return engine.update(by_part=True).total


def state():
    return {
        kind: [None if flat is None else flat.clone() for flat in flats]
        for kind, flats in engine.flats().items()
    }


def equal(one, other):
    pairs = [pair for kind in one for pair in zip(one[kind], other[kind], strict=True)]
    return one.keys() == other.keys() and all(torch.equal(a, b) for a, b in pairs if a is not None)


norms = [step(0, 1.0)]
before = state()
norms.append(step(1, float(bad)))
unchanged = equal(before, state())
norms.append(step(2, 1.0))
after = state()
print(json.dumps([
    [math.isfinite(norm) for norm in norms],
    sorted(before),
    unchanged,
    equal(before, after),
    all(bool(flat.isfinite().all()) for flats in after.values() for flat in flats if flat is not None),
]))
"""


@pytest.mark.engines
@pytest.mark.parametrize(
    ("kind", "precision", "offload", "bad"),
    [
        ("plain", "no", False, "nan"),
        ("plain", "bf16", False, "inf"),
        *((kind, "no", False, "inf") for kind in ("zero1", "zero2", "zero3")),
        *((kind, "bf16", False, "nan") for kind in ("zero1", "zero2", "zero3")),
        *((kind, "bf16", True, "nan") for kind in ("zero1", "zero2", "zero3")),
    ],
)
def test_a_gradient_that_is_not_finite_changes_no_bit_and_the_next_one_is_learned_from(
    kind, precision, offload, bad
):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([kind, precision, offload, bad])]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    finite, kinds, unchanged, is_stuck, ends_finite = json.loads(done.stdout.splitlines()[-1])

    assert finite == [True, False, True]
    assert kinds == ["exp_avg", "exp_avg_sq", "weight"]
    assert unchanged
    assert not is_stuck and ends_finite
