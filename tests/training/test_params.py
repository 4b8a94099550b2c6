"""Laws of the parameters: strict keys and ranges, `smoke` overrides `tiny`, the schema is up to date."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from model.errors import UserError
from training.params import load_params
from training.params_file import SCHEMA, json_schema

PARAMS = Path(__file__).parents[2] / "params.yaml"


def write_changed_params(tmp_path, edit):
    values = yaml.safe_load(PARAMS.read_text())
    edit(values)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_repository_has_parameters_for_every_size():
    tiny, smoke = load_params(PARAMS), load_params(PARAMS, "smoke")

    assert tiny.size == "tiny"
    assert smoke.stage1.steps < tiny.stage1.steps
    assert smoke.stage1.lr == tiny.stage1.lr
    assert tiny.model_dump()["stage2"]["mixture"][0]["weight"] == tiny.stage2.mixture[0].weight


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda v: v["stage1"].update(learning_rate=1), "unknown parameter stage1.learning_rate"),
        (
            lambda v: v["stage2"].update(end=1.5),
            "stage2.end: input should be less than or equal to 1, got 1.5",
        ),
        (
            lambda v: v["backbones"]["decoder"].update(drop=2),
            "backbones.decoder.drop: .* less than or equal to 1",
        ),
        (lambda v: v["prepare"].update(augment=float("nan")), "prepare.augment: .* finite number"),
        (
            lambda v: v["data"].update(bad_record_share=-0.1),
            "bad_record_share: .* greater than or equal to 0",
        ),
        (lambda v: v["optimizer"].update(clip_norm=0), "optimizer.clip_norm: .* greater than 0, got 0"),
        (lambda v: v["stage1"].pop("lr"), "parameter stage1.lr is missing"),
        (lambda v: v["stage2"].update(steps="many"), "stage2.steps: .* valid integer, got 'many'"),
        (lambda v: v["stage2"].update(steps=-1), "stage2.steps: .* greater than or equal to 0, got -1"),
        (lambda v: v["stage2"].update(steps=True), "stage2.steps: .* valid integer, got True"),
        (lambda v: v["stage2"].update(batch=0), "stage2.batch: .* greater than or equal to 1, got 0"),
        (lambda v: v["stage2"].update(mixture=[1]), "stage2.mixture.0: .* valid dictionary"),
        (
            lambda v: v["stage2"]["mixture"][2].update(weight=-1),
            "stage2.mixture.2.weight: .* greater than or equal to 0",
        ),
        (lambda v: v["smoke"]["stage1"].update(step=3), "unknown parameter stage1.step; known: steps, batch"),
        (lambda v: v.update(size="huge"), "size must be one of .* got 'huge'"),
        (lambda v: v.update(precision="fp8"), "precision must be one of .* got 'fp8'"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_path(tmp_path, edit, names):
    with pytest.raises(UserError, match=names):
        load_params(write_changed_params(tmp_path, edit), "smoke" if "stage1.step" in names else None)


@pytest.mark.parametrize(
    ("able", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"amx_bf16": False}, "no"), ({}, "no")],
)
def test_automatic_precision_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, able, precision):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)

    assert load_params(PARAMS).precision == precision
    assert load_params(PARAMS, "smoke").precision == "no"


def test_what_dvc_writes_for_an_experiment_is_read_as_it_was_meant(tmp_path):
    # `dvc exp run -S` writes the file anew by YAML 1.2, for which `no` is a word and 5e-05 a number.
    text = PARAMS.read_text().replace('precision: "no"', "precision: no").replace("lr: 2.0e-3", "lr: 2e-03")
    (tmp_path / "params.yaml").write_text(text)

    for size in ("tiny", "smoke", "7b"):
        assert load_params(tmp_path / "params.yaml", size) == load_params(PARAMS, size)


def test_the_pipeline_names_a_wrong_parameter_in_one_line(tmp_path):
    write_changed_params(tmp_path, lambda values: values.update(seed="one"))
    command = [sys.executable, "-m", "training.params_file", "artifacts/params.json"]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(PARAMS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: seed: ")


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no parameters at"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml is not YAML"):
        load_params(tmp_path / "bad.yaml")


def test_parameters_are_frozen():
    params = load_params(PARAMS)

    with pytest.raises(ValidationError, match="frozen"):
        params.stage1.lr = 1.0


def test_the_json_schema_is_that_of_the_models_and_accepts_the_file():
    schema = json.loads(SCHEMA.read_text())

    assert schema == json_schema(), "run: make schema"
    assert f"$schema={SCHEMA.relative_to(PARAMS.parent)}" in PARAMS.read_text().splitlines()[0]
    values = yaml.safe_load(PARAMS.read_text())
    jsonschema.validate(values, schema)
    values["smoke"]["stage1"]["step"] = 3
    with pytest.raises(jsonschema.ValidationError, match="'step' was unexpected"):
        jsonschema.validate(values, schema)
