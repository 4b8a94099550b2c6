"""Laws of a dry run: what would fail on a paid GPU is named before, in one sentence, with exit code 2."""

import importlib.util
import shutil
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml

from model.checkpoint import save_model
from model.modeling import VargptForConditionalGeneration
from tests.training.data.parts import CONFIG, processor, write_conversations
from training.commands.cli import main
from training.data.bad_records import BadRecordLog
from training.data.code_encoding import encode_pictures
from training.data.prepared_data import DataFolders, index_datasets, open_mixture
from training.params import load_params

ROOT = Path(__file__).parents[3]
DATASET = {"name": "drawn", "path": "set/train.json", "weight": 1.0}
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": ["visual_decoder"]}


def write_params(folder, **stage3):
    """The parameters of size 7b, with these for stage 3, of a model that is tiny."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    small = {"max_tokens": 256, "pack_tokens": 256, "mixture": [DATASET]}
    values["7b"]["preset"] = "tiny"
    values["7b"]["stage3"] |= small | stage3
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return load_params(folder / "params.yaml", "7b")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder in which stage 3 lacks nothing: data with its index, the model of stage 2, and codes."""
    folder = tmp_path_factory.mktemp("whole")
    params = write_params(folder)
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(CONFIG)
    save_model(model, processor(), folder / "outputs/stage2/model")
    write_conversations(folder / "set", ["drawing", "drawing"])
    with chdir(folder):
        folders = DataFolders(Path(), Path("outputs/index"))
        index_datasets(params.stage3.mixture, folders, processor(), 1, 0.0)
        mixture = open_mixture(params.stage3.mixture, folders, 0.0, 0, BadRecordLog())
        encode_pictures(mixture.datasets, model.image_tokenizer, processor(), Path("outputs/codes"))
    return folder


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy of it, to be damaged, where commands run."""
    copy = shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def dry_run(monkeypatch, capsys):
    """The exit code of a dry run of stage 3 and what it says on standard error."""

    def run():
        monkeypatch.setattr(sys, "argv", ["vargpt", "train", "stage3", "--dry-run", "--size", "7b"])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr().err

    return run


def test_a_stage_that_lacks_nothing_passes(folder, dry_run):
    assert dry_run() == (0, "")


def move_codes(folder):
    """Codes, but of another image tokenizer."""
    [codes] = (folder / "outputs/codes").iterdir()
    codes.rename(codes.with_name("0" * 16))


def change_data(folder):
    path = folder / "set/train.json"
    path.write_text(path.read_text() + "\n")


def leave_index_unfinished(folder):
    [index] = (folder / "outputs/index").glob("*/index.json")
    index.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda folder: write_params(folder, code_corruption=0.3),
            "stage3.code_corruption must be 0 with cached_codes, got 0.3: it needs pixels",
        ),
        (
            lambda folder: write_params(folder, softness=0.1),
            "stage3.softness must be 0 with cached_codes, got 0.1: it needs pixels",
        ),
        (
            lambda folder: shutil.rmtree(folder / "set"),
            "stage3.mixture: there is no set/train.json of the dataset 'drawn'",
        ),
        (
            leave_index_unfinished,
            "stage3.mixture: the dataset 'drawn' has no index at outputs/index/drawn-",
        ),
        (change_data, "dataset 'drawn': set/train.json has changed since it was checked"),
        (
            lambda folder: shutil.rmtree(folder / "outputs/stage2"),
            "stage3 starts from stage2, but there is no outputs/stage2/model; run stage2 first",
        ),
        (
            lambda folder: (folder / "outputs/stage2/model/model.safetensors").unlink(),
            "outputs/stage2/model does not hold the whole image tokenizer",
        ),
        (
            lambda folder: shutil.rmtree(folder / "outputs/codes"),
            "stage3.cached_codes: no codes of this image tokenizer at outputs/codes/",
        ),
        (move_codes, "stage3.cached_codes: no codes of this image tokenizer at outputs/codes/"),
    ],
)
def test_what_is_wrong_or_missing_is_named(damage, says, folder, dry_run):
    damage(folder)

    code, told = dry_run()

    assert code == 2
    assert told.startswith(f"error: {says}") and told.count("\n") == 1


def hide(package, monkeypatch):
    """Let a package look as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))


@pytest.mark.parametrize(
    ("package", "options", "says"),
    [
        (
            "deepspeed",
            {"engine": "zero2"},
            "engine zero2 needs deepspeed: pip install -e '.[deepspeed]'",
        ),
        ("peft", {"engine": "ddp", "lora": LORA}, "lora needs peft: pip install -e '.[train]'"),
    ],
)
def test_a_package_that_the_recipe_needs_and_is_not_installed_is_named(
    package, options, says, folder, dry_run, monkeypatch
):
    write_params(folder, **options)
    hide(package, monkeypatch)

    assert dry_run() == (2, f"error: stage3.{says}\n")


@pytest.mark.parametrize("package", ["deepspeed", "peft"])
def test_a_package_that_the_recipe_does_not_need_may_be_missing(package, folder, dry_run, monkeypatch):
    write_params(folder, engine="ddp")
    hide(package, monkeypatch)

    assert dry_run()[0] == 0


def test_pixels_need_no_codes(folder, dry_run):
    shutil.rmtree(folder / "outputs/codes")
    write_params(folder, cached_codes=False, code_corruption=0.3)

    assert dry_run()[0] == 0
