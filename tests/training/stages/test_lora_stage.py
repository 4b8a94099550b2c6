"""Laws of a whole stage with LoRA: adapters beside the model, merged in it, and all told of the run."""

import contextlib
import json
import shutil
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
import yaml
from safetensors.torch import load_file

from model.checkpoint import manifest_sha256
from tests.training.volume import write_params, write_volume
from training.launching.stage_process import main
from training.stages import throughput

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.1, "modules": ["language_model"]}
STAGE = {
    "steps": 5,
    "batch": 4,
    "micro_batch": 2,
    "warmup": 1,
    "checkpoint_every": 2,
    "lr": 1e-2,
    "muon_lr": 0.0,
    "ema": 0.0,
    "lora": LORA,
}
PEAK = 2e12
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    """A folder in which stage 2 has run with LoRA, on a device whose peak is known."""
    folder = tmp_path_factory.mktemp("lora")
    path = write_params(folder)
    values = yaml.safe_load(path.read_text())
    values["stage2"] |= STAGE
    values["smoke"]["stage2"] = {}
    path.write_text(yaml.safe_dump(values))
    write_volume(folder)
    shutil.copytree(folder / "outputs/backbones", folder / "outputs/stage1")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "peak_flops", lambda name: PEAK)
        assert main(["stage2", "--size", "smoke", "--tracking-uri", "http://127.0.0.1:9"]) == 0
    return folder


def weights_of(volume, stage):
    return load_file(volume / "outputs" / stage / "model/model.safetensors")


def entries_of(volume, kind):
    [spool] = volume.glob("spool/*.jsonl")
    entries = [json.loads(line) for line in spool.read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


@pytest.mark.slow
def test_the_adapter_folder_and_the_start_make_the_published_model(volume):
    start, published = weights_of(volume, "stage1"), weights_of(volume, "stage2")
    adapter = load_file(volume / "outputs/stage2/adapter/adapter_model.safetensors")
    config = json.loads((volume / "outputs/stage2/adapter/adapter_config.json").read_text())
    assert published.keys() == start.keys(), "adapters are no weights of the published model"

    downs = [name for name in adapter if name.endswith(".lora_A.weight")]
    assert downs and 2 * len(downs) == len(adapter) and len(config["target_modules"]) == len(downs)
    for down in downs:
        name = down.removeprefix(PREFIX).removesuffix(".lora_A.weight") + ".weight"
        assert name.startswith("language_model.")
        change = LORA["alpha"] / LORA["rank"] * adapter[down.replace("lora_A", "lora_B")] @ adapter[down]
        assert change.abs().max() > 0
        torch.testing.assert_close(published.pop(name), start[name] + change)

    changed = {name.split(".")[0] for name, weight in published.items() if not weight.equal(start[name])}
    assert changed == {"understanding_projector"}


@pytest.mark.slow
def test_the_published_model_names_the_weights_it_started_from_and_its_own(volume):
    lineage = json.loads((volume / "outputs/stage2/model/lineage.json").read_text())
    pointer = json.loads((volume / "artifacts/stage2.json").read_text())

    assert (lineage["stage"], lineage["parent_stage"]) == ("stage2", "stage1")
    assert lineage["parent_weights_sha256"] == manifest_sha256(volume / "outputs/stage1/model")
    assert lineage["weights_sha256"] == pointer["weights_sha256"]
    assert pointer["weights_sha256"] == manifest_sha256(volume / "outputs/stage2/model")


@pytest.mark.slow
def test_a_run_tells_pictures_memory_and_what_mfu_is_measured_by(volume):
    told = {name: value for entry in entries_of(volume, "metrics") for name, value in entry["values"].items()}
    tags = {name: value for entry in entries_of(volume, "tags") for name, value in entry["tags"].items()}

    assert told["pictures_per_second"] > told["drawings_per_second"], "stage 2 reads pictures"
    assert told["peak_memory_gigabytes"] > 0.1
    assert tags["vargpt.mfu_peak_teraflops"] == "2" and "vargpt.mfu_device" in tags
    assert told["mfu/all"] == pytest.approx(told["teraflops/all"] / 2)


@pytest.mark.slow
def test_a_run_tells_where_its_checkpoints_lie(volume):
    tags = {name: value for entry in entries_of(volume, "tags") for name, value in entry["tags"].items()}

    folder = Path(urlparse(tags["vargpt.checkpoints"]).path)

    assert folder.parent == (volume / "outputs/stage2").resolve()
