"""Laws of LoRA: adapters alone learn, the published model has them merged, and peft reads what is saved."""

import copy

import pytest
import torch
from peft import PeftModel
from PIL import Image

from model.checkpoint import load_model, save_model
from model.config import preset
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.engines.make import make_engine
from training.params import LoraParams, load_params
from training.stages.lora import add_adapters
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import Trainer

CONFIG = preset("tiny")
STEPS = 3
LANGUAGE = LoraParams(rank=4, alpha=8.0, dropout=0.0, modules=["language_model"])
DRAWING = LoraParams(
    rank=4, alpha=8.0, dropout=0.0, modules=["visual_decoder", "generation_output_projector"]
)


@pytest.fixture
def start(tmp_path):
    """An untrained model and its folder."""
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    model.visual_decoder.initialize()
    processor = VargptProcessor.for_config(CONFIG, build_text_tokenizer(["Draw Here"], CONFIG))
    save_model(model, processor, tmp_path / "start")
    return model, processor, tmp_path / "start"


@pytest.fixture
def train(start, tmp_path):
    """Trains a stage with adapters; the trainer."""
    model, processor, _ = start
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    picture = ImageRef(tmp_path / "red.png")
    draw = (Message("user", "Draw"), Message("assistant", "Here <image_gen>"))
    samples = [Sample(f"id-{index}", draw, (picture,), "set", {}) for index in range(4)]
    all_params = load_params(ROOT / "params.yaml", "smoke").model_copy(update={"precision": "no"})

    def run(stage_name, lora):
        changes = {"steps": STEPS, "batch": 2, "micro_batch": 1, "muon_lr": 0.0, "lr": 1e-2, "ema": 0.0}
        changes |= {"lora": lora, "text_weight": 1.0, "checkpoint_every": STEPS, "drop_prompt": 0.0}
        params = getattr(all_params, stage_name).model_copy(update=changes)
        tokenizer = CONFIG.image_tokenizer_config
        mixture = Mixture([(samples, 1.0)], 0)
        loader = BatchLoader(mixture, processor, tokenizer, params, 0, BadRecordLog(), 1.0)
        learning = freeze_for(model, stage_named(stage_name), lora)
        engine = make_engine(params, all_params)
        folder = tmp_path / "checkpoints"
        trainer = Trainer(engine, model, learning, loader, params, all_params, folder, lambda: False)
        trainer.run(0, lambda metrics: None, dict)
        trainer.save_last({})
        return trainer

    return run


def outputs(model, processor):
    conversation = [
        {"role": "user", "content": "Draw"},
        {"role": "assistant", "content": "Here <image_gen>"},
    ]
    with torch.no_grad():
        batch = processor.collate([processor.encode(conversation, [Image.new("RGB", (32, 32), "red")])])
        result = model.eval()(**batch)
    return torch.cat([result.logits.flatten(), result.image_logits.flatten()])


@pytest.mark.parametrize(("stage", "lora"), [("stage2", LANGUAGE), ("stage3", DRAWING)])
def test_only_adapters_and_what_has_none_learn(stage, lora, start, train):
    before = copy.deepcopy(start[0].state_dict())
    trainer = train(stage, lora)
    names = {name for name, _ in trainer.learning}
    covered = tuple(f"{module}." for module in lora.modules)
    adapters = {name for name in names if ".lora_" in name}
    assert adapters and all(name.startswith(covered) for name in adapters)
    others = {path for path in stage_named(stage).trains if path not in lora.modules}
    assert {name.split(".")[0] for name in names - adapters} == others
    now = {name.replace(".base_layer.", "."): value for name, value in start[0].state_dict().items()}
    frozen = [name for name in before if name.startswith(covered)]
    assert frozen and all(torch.equal(now[name], before[name]) for name in frozen)


def test_adapters_change_nothing_before_they_have_learned(start):
    model, processor, _ = start
    before = outputs(model, processor)
    add_adapters(
        model, LoraParams(rank=4, alpha=8.0, dropout=0.0, modules=["language_model", "visual_decoder"])
    )
    torch.testing.assert_close(outputs(model, processor), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stage", "lora"), [("stage2", LANGUAGE), ("stage3", DRAWING)])
def test_the_published_model_has_the_adapters_merged_and_peft_reads_them(stage, lora, start, train, tmp_path):
    model, processor, folder = start
    untrained = outputs(model, processor)
    trainer = train(stage, lora)
    trainer.write_model(folder, tmp_path / "model")
    trainer.write_adapters(tmp_path / "adapter")
    learned = outputs(trainer.model, processor)
    assert (learned - untrained).abs().max() > 1e-2

    published, _ = load_model(tmp_path / "model")
    torch.testing.assert_close(outputs(published, processor), learned, rtol=0, atol=1e-4)

    base, _ = load_model(folder)
    weights = dict(published.named_parameters())
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if not name.startswith(tuple(lora.modules)):
                parameter.copy_(weights[name])
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(outputs(adapted.base_model.model, processor), learned, rtol=0, atol=1e-4)


def test_a_stage_with_adapters_goes_on_bit_for_bit(start, train, tmp_path):
    trainer = train("stage2", LANGUAGE)
    assert trainer.resume()[0] == STEPS
    trainer.write_model(start[2], tmp_path / "one")
    trainer.save_last({})
    trainer.write_model(start[2], tmp_path / "two")
    one, two = (load_model(tmp_path / name)[0].state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        (["language_modell"], "no module 'language_modell'"),
        (["vision_tower.clip.post_layernorm"], "no linear map"),
    ],
)
def test_modules_that_cannot_have_adapters_are_named(modules, says, start):
    with pytest.raises(UserError, match=says):
        add_adapters(start[0], LoraParams(rank=4, alpha=8.0, dropout=0.0, modules=modules))
