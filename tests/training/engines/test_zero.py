"""Laws of the ZeRO engine alone, with one process and two linear maps."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.training.volume import ROOT

# One group of processes a Python process: DeepSpeed keeps one.
PROGRAM = """
import json, os, sys
from datetime import timedelta

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from torch import nn

from training.engines.zero import ZeroEngine

stage, offload, begins, precision, micro_batches, optimizer = json.loads(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential()
model.add_module("alpha", nn.Linear(32, 32))
model.add_module("beta", nn.Linear(32, 32))
engine = ZeroEngine(torch.device("cpu"), stage, precision, 1.0, timedelta(seconds=60), offload)


def make_optimizer(named):
    groups = [[p for _, p in named if p.dim() > 1], [p for _, p in named if p.dim() == 1]]
    return getattr(torch.optim, optimizer)([{"params": group} for group in groups], lr=0.1)


engine.prepare(model, list(model.named_parameters()), make_optimizer)
before = [weight.clone() for weight in engine.flats()["weight"]]
if begins:
    engine.begin_states(lambda name: (), 0)
for number in range(1, micro_batches + 1):
    inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(number))
    loss = engine.forward(inputs).float().square().mean() / micro_batches
    engine.backward(loss, number == micro_batches)
norms = engine.update(by_part=True)
moved = [(new - old).tolist() for new, old in zip(engine.flats()["weight"], before)]
print(json.dumps([norms.total, norms.by_part, sum(moved, [])]))
"""


def update(stage, offload, begins=False, precision="no", micro_batches=1, optimizer="AdamW"):
    """One update: the gradient's norm, of all and by part, and by how much each weight moved."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        json.dumps([stage, offload, begins, precision, micro_batches, optimizer]),
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engines
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_norms_of_parts_add_up_to_the_whole_with_states_in_host_memory(stage):
    total, by_part, _ = update(stage, offload=True)

    assert sum(norm**2 for norm in by_part.values()) ** 0.5 == pytest.approx(total, rel=1e-4)


@pytest.mark.engines
@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_of_before_the_first_update_is_gone_on_from(stage):
    assert update(stage, offload=False, begins=True) == update(stage, offload=False)


@pytest.mark.engines
@pytest.mark.parametrize("stage", [2, 3])
def test_rounding_does_not_add_up_over_micro_batches_in_bfloat16(stage):
    exact, rounded = (
        torch.tensor(update(stage, False, False, precision, micro_batches=64, optimizer="SGD")[2])
        for precision in ("no", "bf16")
    )

    # 0.0085 if they are added up in bfloat16.
    assert float((rounded - exact).norm() / exact.norm()) < 0.004
