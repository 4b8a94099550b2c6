"""Laws of data parallel: processes exchange gradients once a step, however many micro-batches it has."""

from datetime import timedelta

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from training.engines.plain import PlainEngine


@pytest.fixture
def engine(tmp_path):
    """Data parallel of a group that is this process alone, which accelerate would not wrap."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    engine = PlainEngine(torch.device("cpu"), "no", 1.0, timedelta(seconds=60))
    module = nn.Linear(4, 1)
    engine.prepare(
        module, list(module.named_parameters()), lambda named: torch.optim.SGD(module.parameters())
    )
    engine._module = DistributedDataParallel(module)
    yield engine
    distributed.destroy_process_group()


def test_gradients_are_exchanged_after_the_last_micro_batch_alone(engine):
    exchanged = []

    def counted(state, bucket):
        exchanged.append(bucket.buffer().numel())
        return allreduce_hook(state, bucket)

    engine._module.register_comm_hook(None, counted)

    for number in range(3):
        is_last = number == 2
        engine.backward(engine.forward(torch.randn(2, 4), is_last).sum(), is_last)

    assert exchanged == [5]
