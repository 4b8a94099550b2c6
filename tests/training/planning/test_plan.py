"""Laws of plans: time, bytes and cost follow from FLOPs and sizes; the committed page is what is planned."""

import re
from pathlib import Path

import pytest

from model.config import preset
from model.errors import UserError
from training.params import LoraParams, load_params
from training.planning.capacity import capacity_page
from training.planning.dry_run import check_dataset, check_recipe
from training.planning.flops import total_of
from training.planning.gpus import GPUS, gpu_named, peak_flops
from training.planning.plan import Assumptions, plan_stage
from training.planning.recipes import Changes, changed_params
from training.planning.report import facts, table
from training.stages.stage_table import STAGES

ROOT = Path(__file__).parents[3]
PARAMS = ROOT / "params.yaml"


@pytest.fixture(scope="module")
def params():
    return load_params(PARAMS, "7b")


def planned(params, stage="stage2", gpus=8, gpu="h100", assumptions=None, **changes):
    changed = changed_params(params, stage, Changes(**changes))
    return plan_stage(
        stage, STAGES[stage].trains, changed, preset("7b"), gpu_named(gpu), gpus, assumptions or Assumptions()
    )


def test_time_is_model_flops_over_peak_and_utilisation(params):
    plan = planned(params, assumptions=Assumptions(mfu=0.5, price=2.0))

    seconds = total_of(plan.flops).model / (8 * 989.4e12 * 0.5)
    assert plan.step_seconds == pytest.approx(seconds)
    assert plan.hours == pytest.approx(4610 * seconds / 3600)
    assert plan.cost == pytest.approx(2.0 * 8 * plan.hours)


def test_flops_of_a_step_do_not_depend_on_the_number_of_gpus(params):
    one, many = (total_of(planned(params, gpus=gpus).flops).model for gpus in (1, 64))

    assert one == pytest.approx(many)


def test_llamas_flops_are_six_for_each_weight_and_token_and_those_of_attention(params):
    """The usual estimate (arXiv:2001.08361), which leaves attention out."""
    plan = planned(params)
    positions = plan.recipe.batch * plan.workload.positions
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)

    flops = plan.flops[next(part for part in plan.flops if part.value == "language model")].model

    attention = 3 * 32 * 4 * positions * plan.workload.positions * 4096
    assert flops == pytest.approx(6 * layers * positions + attention, rel=0.01)


def test_a_checkpoint_has_twelve_bytes_for_each_number_that_learns(params):
    for stage in ("stage1", "stage2", "stage3"):
        plan = planned(params, stage)

        assert plan.checkpoint_bytes == 12 * plan.sizes.num_learning


def test_the_published_model_is_in_bfloat16_but_for_its_tokenizer(params):
    assert planned(params).model_bytes == pytest.approx(2 * 9_278_125_831 + 2 * 109e6, rel=0.001)


def test_the_7b_recipes_fit_eight_h100_and_full_stage2_does_not_fit_one(params):
    assert all(planned(params, stage).fits for stage in ("stage1", "stage2", "stage3"))
    assert not planned(params, gpus=1).fits


def test_adapters_need_less_of_everything_but_the_forward_pass(params):
    full, lora = planned(params), planned(params, lora_rank=16)

    assert lora.checkpoint_bytes < 0.1 * full.checkpoint_bytes
    assert lora.memory.peak < full.memory.peak
    assert total_of(lora.flops).backward_weights < 0.1 * total_of(full.flops).backward_weights
    assert total_of(lora.flops).forward > total_of(full.flops).forward


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_a_source_and_more_memory_than_its_context_takes(name):
    assert GPUS[name].source
    assert GPUS[name].fits(0)


def test_an_unknown_gpu_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"gpu must be one of l4, .* got 'h1'"):
        gpu_named("h1")


def test_a_table_names_every_part_and_facts_are_its_figures(params):
    plan = planned(params, assumptions=Assumptions(price=3.0))
    text, told = table(plan), facts(plan)

    assert all(name in text for name in ("vision tower", "language model", "visual decoder", "fits", "cost"))
    assert told["memory"]["needed"] == plan.needed
    assert told["hours"] == plan.hours


def test_the_committed_page_is_the_one_that_the_command_makes():
    assert (ROOT / "docs/capacity.md").read_text() == capacity_page(
        PARAMS, {name: stage.trains for name, stage in STAGES.items()}
    ), "vargpt plan --page docs/capacity.md"


@pytest.mark.parametrize(
    ("changes", "processes", "words"),
    [
        ({"pack_tokens": 0, "micro_batch": 7}, 8, "stage2.micro_batch 7 does not divide the 32 samples"),
        ({"batch": 4}, 8, "stage2.batch 4 gives 8 processes no sample each"),
        ({"batch": 12}, 8, "stage2.batch 12 must be a multiple of the 8 processes"),
        ({"max_tokens": 5000}, 1, "stage2.max_tokens 5000 exceeds the model's context of 4096"),
        ({"pack_tokens": 100}, 1, "stage2.pack_tokens 100 has no room"),
        ({"engine": "ddp", "offload": True}, 1, "stage2.offload needs engine zero1, zero2 or zero3"),
        ({"muon_lr": 1.0}, 1, "stage2.muon_lr must be 0 with engine zero3"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_by_name(changes, processes, words, params):
    recipe = params.stage2.model_copy(update=changes)

    with pytest.raises(UserError, match=re.escape(words)):
        check_recipe("stage2", recipe, preset("7b"), processes)


@pytest.mark.parametrize("size", ["tiny", "smoke", "7b"])
@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3", "joint"])
def test_the_recipes_that_are_here_pass(size, stage):
    params = load_params(PARAMS, size)

    check_recipe(stage, getattr(params, stage), preset(params.preset), 1)


def test_adapters_of_a_module_that_is_not_there_are_refused(params):
    lora = LoraParams(rank=4, alpha=8.0, dropout=0.0, modules=["language_model.modell"])
    changed = params.model_copy(update={"stage2": params.stage2.model_copy(update={"lora": lora})})

    with pytest.raises(UserError, match=r"lora\.modules: 'language_model.modell' is no module"):
        plan_stage(
            "stage2", STAGES["stage2"].trains, changed, preset("7b"), gpu_named("h100"), 8, Assumptions()
        )


def test_a_dataset_that_is_not_there_is_named(params, tmp_path):
    dataset = params.stage2.mixture[0]
    with pytest.raises(
        UserError, match=r"stage2.mixture: there is no .*mix665k.json of the dataset 'llava-1.5"
    ):
        check_dataset("stage2", dataset, tmp_path)

    path = tmp_path / dataset.path
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=r"there is no folder .*data/llava with pictures of"):
        check_dataset("stage2", dataset, tmp_path)

    (tmp_path / dataset.image_root).mkdir(parents=True)
    check_dataset("stage2", dataset, tmp_path)


@pytest.mark.parametrize(
    ("device_name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("A100-PCIE-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_card(device_name, gpu):
    assert peak_flops(device_name) == GPUS[gpu].flops


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA L40",
        "NVIDIA RTX A1000",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA H200 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "cpu",
    ],
)
def test_a_slower_relative_of_a_card_has_no_known_peak(device_name):
    assert peak_flops(device_name) is None
