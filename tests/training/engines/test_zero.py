"""Laws of the ZeRO engine alone, with one process and two linear maps."""

import json
import os
import subprocess
import sys

import pytest

from tests.training.volume import ROOT

# One group of processes a Python process: DeepSpeed keeps one.
PROGRAM = """
import json, os, sys
from datetime import timedelta

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
from torch import nn

from training.engines.zero import ZeroEngine

stage, offload, begins = json.loads(sys.argv[1])
torch.manual_seed(0)
model = nn.Sequential()
model.add_module("alpha", nn.Linear(4, 4))
model.add_module("beta", nn.Linear(4, 4))
engine = ZeroEngine(torch.device("cpu"), stage, "no", 1.0, timedelta(seconds=60), offload)


def make_optimizer(named):
    groups = [[p for _, p in named if p.dim() > 1], [p for _, p in named if p.dim() == 1]]
    return torch.optim.AdamW([{"params": group} for group in groups], lr=0.1)


engine.prepare(model, list(model.named_parameters()), make_optimizer)
if begins:
    engine.begin_states(lambda name: (), 0)
engine.backward(engine.forward(torch.ones(2, 4)).square().sum(), True)
norms = engine.update(by_part=True)
print(json.dumps([norms.total, norms.by_part]))
"""


def norms(stage, offload, begins=False):
    """Gradient norms of one update: of all, and by part."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([stage, offload, begins])]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.engines
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_norms_of_parts_add_up_to_the_whole_with_states_in_host_memory(stage):
    total, by_part = norms(stage, offload=True)

    assert sum(norm**2 for norm in by_part.values()) ** 0.5 == pytest.approx(total, rel=1e-4)


@pytest.mark.engines
@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_of_before_the_first_update_is_gone_on_from(stage):
    assert norms(stage, offload=False, begins=True) == norms(stage, offload=False)
