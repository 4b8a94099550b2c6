"""Laws of FLOPs and parameters: formulae agree with PyTorch's counter on real models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from model.config import PRESETS, preset
from model.modeling import VargptForConditionalGeneration
from tests.training.planning.models import SHAPES, as_pixels, batch_of, build, checkpoint_blocks
from training.params import LoraParams
from training.planning import tokenizer_parts
from training.planning.flops import count_flops, total_of
from training.planning.gradients import Part, held_operations, trace
from training.planning.operations import Unit
from training.stages.stage_table import STAGES, freeze_for

KINDS = {
    "text": {"texts": 2},
    "pictures": {"pictures": 2},
    "drawings": {"drawings": 2},
    "all of them": {"texts": 1, "pictures": 1, "drawings": 1},
}
# PyTorch counts nothing for the CPU's fused kernel. Its formulae for those of GPUs are registered for it
# here.
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop.__wrapped__,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop.__wrapped__,
}


def counted(call, **mapping):
    with FlopCounterMode(display=False, **mapping) as counter:
        call()
    return counter.get_total_flops()


def planned(config, stage, units, *, lora=None, encodes=False, **how):
    traced = trace(config, STAGES[stage].trains, lora, units, encodes=encodes)
    return count_flops(traced, units, **{"checkpoint_activations": False, **how})


def step(model, batch):
    """One training step's loss and gradients."""
    model.zero_grad(set_to_none=True)
    loss = model.loss_sums(**batch).mean()
    if loss.requires_grad:
        loss.backward()


@pytest.mark.parametrize("name", [*PRESETS, *SHAPES])
def test_parameters_by_path_are_those_of_the_model(name):
    config = SHAPES[name]() if name in SHAPES else preset(name)
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)

    by_path = {op.path: op.parameters for op in held_operations(config, None, encodes=True) if op.parameters}

    real = {}
    for path, parameter in model.named_parameters():
        owner = path if path in by_path else path.rpartition(".")[0]
        real[owner] = real.get(owner, 0) + parameter.numel()
    assert by_path == real


@pytest.mark.parametrize(
    ("shape", "kind"), [("as 7b", kind) for kind in KINDS] + [("grouped queries", "all of them")]
)
@pytest.mark.parametrize("stage", STAGES)
def test_flops_of_a_step_agree_with_pytorchs_counter(shape, stage, kind):
    model = build(shape)
    freeze_for(model, STAGES[stage])
    batch, units = batch_of(model.config, **KINDS[kind])

    # The plain kernel, two matrix products, is the one that the counter counts on a CPU.
    with sdpa_kernel(SDPBackend.MATH):
        real = counted(lambda: step(model, batch))

    ours = total_of(planned(model.config, stage, units, fused_attention=False))
    assert ours.model == ours.hardware == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_flops_with_checkpointed_blocks_agree_as_well(shape, stage, monkeypatch):
    model = build(shape)
    freeze_for(model, STAGES[stage])
    checkpoint_blocks(model, monkeypatch)
    batch, units = batch_of(model.config, texts=1, pictures=1, drawings=2)

    real = counted(lambda: step(model, batch), custom_mapping=FUSED)

    ours = total_of(planned(model.config, stage, units, checkpoint_activations=True))
    assert ours.hardware == pytest.approx(real, rel=0.01)
    assert ours.recomputed > 0.1 * ours.model


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_of_pixels_are_those_of_codes_and_of_the_tokenizers_encoder(shape):
    model = build(shape)
    freeze_for(model, STAGES["stage3"])
    batch, units = batch_of(model.config, drawings=2)

    with sdpa_kernel(SDPBackend.MATH):
        real = counted(lambda: step(model, as_pixels(model.config, batch)))

    by_part = planned(model.config, "stage3", units, encodes=True, fused_attention=False)
    assert total_of(by_part).model == pytest.approx(real, rel=0.01)
    assert by_part[Part.TOKENIZER_ENCODER].forward > 0
    assert by_part[Part.TOKENIZER_ENCODER].backward_activations == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_agrees_alone(shape):
    """So that no fault of one part hides behind another's size."""
    model = build(shape).requires_grad_(False)
    config = model.config
    batch, units = batch_of(config, pictures=1, drawings=1, texts=0)
    tokenizer = config.image_tokenizer_config
    by_part = planned(config, "stage1", units, encodes=True, fused_attention=False)
    width = config.visual_decoder_config.width
    tokens, cond = torch.randn(1, config.num_image_tokens, width), torch.randn(1, width)
    canvas = torch.randn(1, tokenizer.latent_dim, *[config.scales[-1]] * 2)
    pixels = as_pixels(config, batch)["generation_pixel_values"]
    calls = {
        Part.VISION_TOWER: lambda: model.vision_tower(batch["pixel_values"]),
        Part.TOKENIZER_ENCODER: lambda: model.image_tokenizer.decoder_input(
            torch.cat(model.image_tokenizer.encode(pixels), dim=1)
        ),
        Part.VISUAL_DECODER: lambda: (
            model.visual_decoder.predict(tokens, cond),
            model.visual_decoder.embed(cond, torch.randn(1, len(tokens[0]) - 1, tokenizer.latent_dim)),
        ),
    }

    with sdpa_kernel(SDPBackend.MATH):
        real = {part: counted(call) for part, call in calls.items()}
        decoding = counted(lambda: model.image_tokenizer.decode_canvas(canvas))

    assert {part: by_part[part].forward for part in calls} == pytest.approx(real, rel=0.01)
    decoded = sum(op.forward_flops({Unit.DRAWN_IMAGE: 1}) for op in tokenizer_parts.decoder(tokenizer))
    assert decoded == pytest.approx(decoding, rel=0.01)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_adapters_are_counted_and_the_weights_that_they_stand_for_need_no_gradient(checkpointed, monkeypatch):
    modules, rank = ["language_model"], 24
    lora = LoraParams(rank=rank, alpha=48.0, dropout=0.0, modules=modules)
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(SHAPES["as 7b"]())
    freeze_for(model, STAGES["stage2"], lora)
    batch, units = batch_of(model.config, texts=1, pictures=1, drawings=1)
    if checkpointed:
        checkpoint_blocks(model, monkeypatch)

    real = counted(lambda: step(model, batch), custom_mapping=FUSED)

    ours = planned(model.config, "stage2", units, lora=lora, checkpoint_activations=checkpointed)
    assert total_of(ours).hardware == pytest.approx(real, rel=0.01)
    learning = sum(
        step.operation.parameters
        for step in trace(model.config, STAGES["stage2"].trains, lora, units, encodes=False)
        if step.learns
    )
    assert learning == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_masked_pairs_of_a_drawing_count_as_pytorch_counts_them():
    """The block mask lets two thirds of the pairs through; the kernels, and so the counter, multiply all."""
    config = preset("7b")
    units = {**dict.fromkeys(Unit, 0), Unit.DRAWN_IMAGE: 1}
    attention = [
        step.operation.forward_flops(units)
        for step in trace(config, (), None, units, encodes=False)
        if step.operation.kind == "attention" and step.part is Part.VISUAL_DECODER
    ]

    assert sum(attention) == 30 * 4 * 680**2 * 1920
