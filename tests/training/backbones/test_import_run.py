"""Laws of an import as a stage and as a command: pointer, record, run; memory for a tensor at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from bench.published_layout import image_tokenizer, llava, released_vargpt, var
from bench.random_checkpoint import RandomWeights, write_folder, write_pth, write_text_tokenizer
from model.checkpoint import load_model
from model.config import PRESETS, preset
from model.manifest import manifest_sha256
from training.backbones.run import run_backbones
from training.params import load_params
from training.registry.lineage import read_lineage
from training.registry.stage_folders import StageFolders
from training.run_context import ImageFacts, RunContext

ROOT = Path(__file__).parents[3]
IDS = {
    "image_token_id": 300,
    "image_start_token_id": 302,
    "image_end_token_id": 303,
    "image_pad_token_id": 304,
}
# Shaped like 7b: many layers, of which none is large, and names of all kinds.
SMALL = {
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    },
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "pad_token_id": 301,
    },
    "image_tokenizer_config": {
        "scales": (1, 2),
        "codebook_size": 32,
        "latent_dim": 8,
        "channels": (32, 32),
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "num_refiners": 2,
    },
    "visual_decoder_config": {"depth": 2, "width": 32, "num_heads": 2, "num_starts": 304},
    **IDS,
}
DEEP = SMALL | {
    "text_config": SMALL["text_config"]
    | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 60, "num_attention_heads": 8}
    | {"num_key_value_heads": 8}
}
# Written on one's own, so that what a checker of weights or a test imported before does not count.
IMPORT = """
import sys
from pathlib import Path
from model.config import PRESETS
from tests.training.backbones.test_import_run import DEEP
from training.backbones.import_plan import ImportSources
from training.backbones.import_weights import ImportChoices, import_weights

def kibibytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

PRESETS["deep"] = DEEP
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = kibibytes("VmRSS")
import_weights(
    ImportSources(vargpt=Path(sys.argv[1])), Path(sys.argv[2]), ImportChoices(preset="deep"), is_verified=True
)
print((kibibytes("VmHWM") - before) * 1024)
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", SMALL)
    return preset("small")


def write_llava(folder, config):
    write_folder(folder, llava(config), RandomWeights(torch.float16))
    write_text_tokenizer(folder, config)


def test_the_stage_backbones_imports_what_the_parameters_name(small, mlflow_db, tmp_path):
    write_llava(tmp_path / "llava", small)
    write_pth(tmp_path / "var_d30.pth", var(small), RandomWeights(torch.float32))
    write_pth(
        tmp_path / "vae.pth", image_tokenizer(small.image_tokenizer_config), RandomWeights(torch.float32)
    )
    named = {"vargpt": None, "llava": "llava", "var": "var_d30.pth", "tokenizer": "vae.pth"}
    params = load_params(ROOT / "params.yaml", "7b")
    paths = {kind: name and str(tmp_path / name) for kind, name in named.items()}
    params = params.model_copy(update={"preset": "small", "weights": params.weights.model_copy(update=paths)})
    folders = StageFolders("backbones", tmp_path / "prepared", tmp_path / "outputs", tmp_path / "data.dvc")
    context = RunContext(
        tracking_uri=mlflow_db,
        spool=tmp_path / "spool",
        image=ImageFacts(commit="c" * 40, name="registry/training:1"),
        should_stop=lambda: False,
    )

    for _ in range(2):  # a second start replaces the model of the first
        run_backbones(params, folders, context)

    model, processor = load_model(folders.model_dir)
    assert processor.null_prompt() == model.config.null_prompt
    weights = manifest_sha256(folders.model_dir)
    pointer = json.loads(folders.pointer_path("backbones").read_text())
    assert (pointer["stage"], pointer["weights_sha256"]) == ("backbones", weights)
    run = MlflowClient(mlflow_db).get_run(pointer["run_id"])
    assert run.data.tags["vargpt.weights_sha256"] == weights
    assert run.data.params["var"] == paths["var"]
    [trained] = MlflowClient(mlflow_db).search_model_versions(f"run_id = '{pointer['run_id']}'")
    assert (trained.name, trained.tags["vargpt.weights_sha256"]) == ("vargpt-trained", weights)
    record = read_lineage(folders.model_dir)
    assert (record.stage, record.weights_sha256) == ("import", weights)
    assert record.training_image == "registry/training:1"
    assert {"var_d30.pth", "vae.pth", "llava/tokenizer.json"} <= record.sources_sha256.keys()


def test_weights_that_are_no_whole_model_fail_the_stage_and_leave_no_pointer(small, mlflow_db, tmp_path):
    write_llava(tmp_path / "llava", small)
    params = load_params(ROOT / "params.yaml", "7b")
    paths = {"llava": str(tmp_path / "llava"), "var": None, "tokenizer": None}
    params = params.model_copy(update={"preset": "small", "weights": params.weights.model_copy(update=paths)})
    folders = StageFolders("backbones", tmp_path / "prepared", tmp_path / "outputs", tmp_path / "data.dvc")
    context = RunContext(
        tracking_uri=None, spool=tmp_path / "spool", image=ImageFacts(), should_stop=lambda: False
    )

    with pytest.raises(ValueError, match=r"no source has .*visual_decoder"):
        run_backbones(params, folders, context)

    assert not folders.pointer_path("backbones").exists()
    assert not folders.model_dir.exists()


@pytest.mark.slow
def test_an_import_by_command_points_to_its_model_and_is_compared_by_the_same_command(small, tmp_path):
    write_folder(tmp_path / "released", released_vargpt(small), RandomWeights(torch.bfloat16))
    write_text_tokenizer(tmp_path / "released", small)
    code = (
        "from model.config import PRESETS; from tests.training.backbones.test_import_run import SMALL; "
        "PRESETS['small'] = SMALL; from training.commands.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "import-weights", "--vargpt", "released", "--preset", "small"]

    def run(*options):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    done = run("--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    pointer = json.loads((tmp_path / "artifacts" / "backbones.json").read_text())
    assert pointer["weights_sha256"] == facts["weights_sha256"]
    assert pointer["model"] == "outputs/backbones/model"
    assert facts["report"]["left_out"]["usage statistics of the codebook"] == 1
    assert run("--verify").returncode == 0
    again = run()
    assert again.returncode == 2 and "exists already" in again.stderr

    write_folder(tmp_path / "released", released_vargpt(small), RandomWeights(torch.bfloat16, seed=1))
    other = run("--verify")
    assert other.returncode == 2 and "is not" in other.stderr


@pytest.mark.slow
def test_memory_holds_a_tensor_at_a_time_whatever_there_is_in_all(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "deep", DEEP)
    config = preset("deep")
    layout = released_vargpt(config)
    write_folder(tmp_path / "released", layout, RandomWeights(torch.bfloat16), max_shard="40MB")
    write_text_tokenizer(tmp_path / "released", config)
    total = sum(path.stat().st_size for path in (tmp_path / "released").glob("*.safetensors"))

    command = [sys.executable, "-c", IMPORT, str(tmp_path / "released"), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)

    assert done.returncode == 0, done.stderr
    growth = int(done.stdout.splitlines()[-1])
    assert total > 380e6
    # Libraries that the import loads are counted, too.
    assert growth < total / 3, f"{growth:,} of {total:,} bytes"
