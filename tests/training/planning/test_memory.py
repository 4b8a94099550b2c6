"""Laws of memory: bytes by formula are those of a real training step on a CPU, and of ZeRO's paper."""

import copy
from pathlib import Path

import pytest

from model.config import preset
from tests.training.planning.live_memory import LiveMemory
from tests.training.planning.models import batch_of, build, checkpoint_blocks
from training.optimization.optimizer import make_adamw
from training.optimization.weight_average import WeightAverage
from training.params import OptimizerParams, load_params
from training.planning.gradients import Part
from training.planning.memory import Kind, checkpoint_bytes, layout_of, plan_memory, sizes_of
from training.stages.stage_table import STAGES, freeze_for
from training.tiny.muon import make_tiny_optimizer

ADAMW = OptimizerParams(weight_decay=0.0, beta1=0.9, beta2=0.999, clip_norm=1.0)
BATCH = {"texts": 1, "pictures": 1, "drawings": 1}


@pytest.fixture(scope="module")
def params():
    return load_params(Path(__file__).parents[3] / "params.yaml", "7b")


def stage_params(params, name, **changes):
    return getattr(params, name).model_copy(update=changes)


def planned(config, stage, params, units, precision="no", processes=1, stored_bytes=4):
    layout = layout_of(params, precision, processes, stored_bytes)
    return plan_memory(config, STAGES[stage].trains, params, layout, units)


def of_kind(memory, kind):
    return sum(memory.by_kind[kind].values())


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_memory_of_a_step_is_what_is_measured(stage, checkpointed, params, monkeypatch):
    recipe = stage_params(
        params, stage, engine="ddp", checkpoint_activations=checkpointed, lora=None, ema=0.0
    )
    model = copy.deepcopy(build("as 7b"))
    freeze_for(model, STAGES[stage])
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if checkpointed:
        checkpoint_blocks(model, monkeypatch)
    batch, units = batch_of(model.config, **BATCH)
    optimizer = make_adamw([(n, p) for n, p in model.named_parameters() if p.requires_grad], 1e-4, ADAMW)
    # States, and gradients of the first micro-batch of the next step, are there when the second one begins.
    model.loss_sums(**batch).mean().backward()
    optimizer.step()
    lasting = [*model.parameters(), *(p.grad for p in learning)]
    lasting += [state for states in optimizer.state.values() for state in states.values()]

    with LiveMemory() as memory:
        for tensor in lasting:
            memory.add(tensor)
        model.loss_sums(**batch).mean().backward()

    ours = planned(model.config, stage, recipe, units)
    unused = ours_of_unused_parts(model, recipe, stage)
    assert ours.peak + unused == pytest.approx(memory.peak, rel=0.05)
    assert of_kind(ours, Kind.OPTIMIZER) == sum(
        state.nbytes for states in optimizer.state.values() for state in states.values() if state.dim()
    )
    assert of_kind(ours, Kind.GRADIENTS) == sum(p.grad.nbytes for p in learning)


def ours_of_unused_parts(model, recipe, stage):
    """The tokenizer's encoder, which the recipe leaves out as codes are cached, but this model has."""
    with_encoder = sizes_of(
        model.config, STAGES[stage].trains, recipe.model_copy(update={"cached_codes": False})
    )
    without = sizes_of(model.config, STAGES[stage].trains, recipe)
    return 4 * (with_encoder.num_held - without.num_held)


def test_states_of_muon_are_half_of_adamws(params):
    recipe = stage_params(params, "stage3", engine="ddp", muon_lr=1e-3, ema=0.99)
    model = copy.deepcopy(build("as 7b"))
    freeze_for(model, STAGES["stage3"])
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_tiny_optimizer([model], recipe, ADAMW)
    batch, _ = batch_of(model.config, drawings=1)
    model.loss_sums(**batch).mean().backward()
    optimizer.step()
    average = WeightAverage(learning, 0.99)
    states = [
        s for part in optimizer.optimizers.values() for of_one in part.state.values() for s in of_one.values()
    ]
    kept = [*learning, *average.averages, *(state for state in states if state.dim())]

    sizes = sizes_of(model.config, STAGES["stage3"].trains, recipe)

    assert checkpoint_bytes(sizes, recipe) == sum(tensor.nbytes for tensor in kept)


@pytest.mark.parametrize("processes", [1, 8])
def test_zero_shares_what_its_paper_says(processes, params):
    config, stage, n = preset("7b"), "stage2", processes
    units = dict.fromkeys(batch_of(build("as 7b").config, texts=1)[1], 0)
    sizes = sizes_of(config, STAGES[stage].trains, stage_params(params, stage))
    tokenizer = 4 * (sizes.held[Part.TOKENIZER_ENCODER] + sizes.held[Part.TOKENIZER_DECODER])
    held, learning = 2 * sizes.num_held - tokenizer / 2, sizes.num_learning
    found = {
        engine: planned(config, stage, stage_params(params, stage, engine=engine), units, "bf16", n, 2)
        for engine in ("zero1", "zero2", "zero3")
    }

    weights = {engine: of_kind(memory, Kind.WEIGHTS) - tokenizer for engine, memory in found.items()}
    assert weights == pytest.approx({"zero1": held, "zero2": held, "zero3": held / n})
    for memory in found.values():
        assert of_kind(memory, Kind.MASTERS) == pytest.approx(4 * learning / n)
        assert of_kind(memory, Kind.OPTIMIZER) == pytest.approx(8 * learning / n)
    gradients = {engine: of_kind(memory, Kind.GRADIENTS) for engine, memory in found.items()}
    both = 4 * learning / n
    assert gradients == pytest.approx({"zero1": 2 * learning, "zero2": both, "zero3": both})


@pytest.mark.parametrize("processes", [8, 512])
def test_the_whole_model_is_on_a_gpu_before_it_is_shared(params, processes):
    config, stage = preset("7b"), "stage2"
    units = dict.fromkeys(batch_of(build("as 7b").config, texts=1)[1], 0)
    recipe = stage_params(params, stage, engine="zero3")

    memory = planned(config, stage, recipe, units, "bf16", processes, 2)

    whole = 2 * sizes_of(config, STAGES[stage].trains, recipe).num_held
    assert memory.host["model before it is on the GPU"] == memory.start == whole
    assert memory.peak >= whole


def test_offloaded_states_are_in_host_memory(params):
    config, stage = preset("7b"), "stage2"
    units = dict.fromkeys(batch_of(build("as 7b").config, texts=1)[1], 0)
    recipe = stage_params(params, stage, engine="zero2", offload=True)

    memory = planned(config, stage, recipe, units, "bf16", 1, 2)

    num = sizes_of(config, STAGES[stage].trains, recipe).num_learning
    assert (
        of_kind(memory, Kind.OPTIMIZER)
        == of_kind(memory, Kind.MASTERS)
        == of_kind(memory, Kind.GRADIENTS)
        == 0
    )
    assert memory.host["optimizer states, weights and gradients"] == 16 * num
