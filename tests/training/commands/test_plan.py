"""Laws of `vargpt plan` and of a dry run: a table or one JSON object, and a fitting exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from model.config import preset

ROOT = Path(__file__).parents[3]


def vargpt(*arguments, cwd=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "training.commands", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_plan_ends_with_0_where_it_fits_and_with_1_where_not():
    options = ("plan", "--size", "7b", "--stage", "stage2", "--gpu", "h100", "--engine", "zero2")
    many = vargpt(*options, "--gpus", "8", "--price", "2.5", "--json")
    one = vargpt(*options, "--gpus", "1")

    told = json.loads(many.stdout)
    assert many.returncode == 0
    assert (told["engine"], told["gpus"], told["memory"]["fits"]) == ("zero2", 8, True)
    assert told["cost"] > 0
    assert one.returncode == 1
    assert "DOES NOT FIT" in one.stdout


def test_a_dry_run_says_what_learns_and_what_is_wrong_without_training(tmp_path):
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dataset in values["stage1"]["mixture"]:
        path = tmp_path / dataset["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    preset("tiny").save_pretrained(tmp_path / "outputs/backbones/model")
    before = sorted(tmp_path.rglob("*"))
    good = vargpt("train", "stage1", "--dry-run", cwd=tmp_path)
    missing = vargpt("train", "stage2", "--dry-run", "--nproc", "2", cwd=tmp_path)
    values["stage1"]["engine"] = "zero4"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    unknown = vargpt("train", "stage1", "--dry-run", cwd=tmp_path)

    assert good.returncode == 0, good.stderr
    assert "learns: generation_input_projector" in good.stdout
    assert "frozen: vision tower" in good.stdout
    assert sorted(tmp_path.rglob("*")) == before
    assert (missing.returncode, unknown.returncode) == (2, 2)
    assert missing.stderr.startswith("error: stage2.mixture: there is no prepared/understanding/train.json")
    assert unknown.stderr.startswith(
        "error: stage1.engine: input should be 'ddp', 'zero1', 'zero2' or 'zero3'"
    )
    assert len(unknown.stderr.splitlines()) == 1
