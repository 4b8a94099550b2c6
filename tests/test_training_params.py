"""Laws of the parameters: one home, strict keys, smoke over tiny."""

from pathlib import Path

import pytest
import yaml

from training.params import load_params, plain

PARAMS = Path(__file__).parents[1] / "params.yaml"


def changed(tmp_path, edit):
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
    assert plain(tiny)["stage2"]["mixture"]["understanding"] == tiny.stage2.mixture["understanding"]


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda v: v["stage1"].update(learning_rate=1), "unknown parameter stage1.learning_rate"),
        (lambda v: v["stage2"].update(end=1.5), "stage2.end must be from 0 to 1, got 1.5"),
        (lambda v: v["backbones"]["decoder"].update(drop=2), "backbones.decoder.drop must be from 0 to 1"),
        (lambda v: v["prepare"].update(augment=float("nan")), "prepare.augment must be float, not negative"),
        (
            lambda v: v["prepare"].update(bad_record_share=-0.1),
            "bad_record_share must be float, not negative",
        ),
        (lambda v: v["stage1"].pop("lr"), "parameter stage1.lr is missing"),
        (lambda v: v["stage2"].update(steps="many"), "stage2.steps must be int, not negative, got 'many'"),
        (lambda v: v["stage2"].update(steps=-1), "stage2.steps must be int, not negative, got -1"),
        (lambda v: v["stage2"].update(lr=float("nan")), "stage2.lr must be float"),
        (lambda v: v["stage2"].update(mixture=[1]), "stage2.mixture must be a mapping"),
        (lambda v: v.update(size="huge"), "size must be one of .* got 'huge'"),
        (lambda v: v.update(precision="fp8"), "precision must be one of .* got 'fp8'"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_path(tmp_path, edit, names):
    with pytest.raises(ValueError, match=names):
        load_params(changed(tmp_path, edit))


@pytest.mark.parametrize(
    ("able", "precision"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"amx_bf16": False}, "no"), ({}, "no")],
)
def test_automatic_precision_is_bfloat16_where_the_processor_multiplies_it(monkeypatch, able, precision):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: able)

    assert load_params(PARAMS).precision == precision
    assert load_params(PARAMS, "smoke").precision == "no"


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no parameters at"):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml is not YAML"):
        load_params(tmp_path / "bad.yaml")
