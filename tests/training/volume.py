"""Writes what stage 1 needs on a volume, at smoke size: parameters, prepared data, untrained backbones."""

import json
from pathlib import Path

import torch

from model.checkpoint import save_model
from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.raw_data import copy_raw_data
from training.digits.prepare import prepare
from training.params import load_params
from training.registry.stage_folders import StageFolders

ROOT = Path(__file__).parents[2]


def write_params(folder: Path, **stage1: object) -> Path:
    """Write the params.yaml of the repository with little data and these values for stage 1."""
    import yaml

    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["smoke"]["prepare"] = {
        "scenes": 40,
        "scenes_drawn": 40,
        "understanding": 30,
        "drawing": 30,
        "text": 30,
        "validation": 4,
        "test": 4,
    }
    values["stage1"] |= {"micro_batch": 4} | stage1
    values["smoke"]["stage1"] = {}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def write_volume(folder: Path) -> None:
    """Write data, prepared data and untrained backbones below a folder that has a params.yaml."""
    pointer = folder / "data.dvc"
    pointer.write_text((ROOT / "data.dvc").read_text())
    copy_raw_data(folder / "data")
    params = load_params(folder / "params.yaml", "smoke")
    prepare(params.prepare, params.seed, folder / "data", folder / "prepared")
    torch.manual_seed(0)
    config = preset("tiny")
    records = json.loads((folder / "prepared/drawing/train.json").read_text())
    texts = [message["content"] for record in records for message in record["messages"]]
    tokenizer = build_text_tokenizer(texts, config)
    processor = VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)
    config.null_prompt = processor.null_prompt()
    model = VargptForConditionalGeneration(config)
    model.visual_decoder.initialize()
    folders = StageFolders("backbones", folder / "prepared", folder / "outputs", pointer)
    lineage = vars(folders.lineage(params, None))
    weights = folders.publish(lambda beside: save_model(model, processor, beside), lineage)
    folders.point(weights, "none", 0.0)
