"""Laws of promote, rollback, lineage: figures must be of these weights, and somebody answers for it."""

import json
import shutil
from pathlib import Path

import pytest
import typer
import yaml

from model.errors import UserError
from model.manifest import manifest_sha256, write_manifest
from tests.training.registry.candidates import (
    METRICS,
    aliases,
    changed,
    measured,
    published_model,
    tracked_run,
)
from tests.training.registry.repositories import git, move_data_on, publish
from training.commands.registry import acting_user, lineage, promote, rollback
from training.registry.lineage import read_lineage
from training.registry.versions import register

ROOT = Path(__file__).parents[3]
POINTER, FIGURES = Path("artifacts/stage3.json"), Path("metrics/evaluate.json")


@pytest.fixture(autouse=True)
def ada(monkeypatch):
    monkeypatch.setenv("USER", "ada")


@pytest.fixture
def uri(mlflow_db, tmp_path, monkeypatch):
    """A registry, and a working directory with the parameters of size tiny."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return mlflow_db


def train(uri, name, metrics=METRICS, **subject):
    """What stage and evaluation leave: a model, its pointer, its figures."""
    folder = published_model(Path(), name)
    POINTER.parent.mkdir(exist_ok=True)
    FIGURES.parent.mkdir(exist_ok=True)
    pointer = {
        "model": str(folder),
        "weights_sha256": manifest_sha256(folder),
        "run_id": tracked_run(uri, Path()),
    }
    POINTER.write_text(json.dumps(pointer))
    FIGURES.write_text(json.dumps(measured(metrics, folder, **subject)))
    return folder


def told(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_first_champion_must_reach_the_floors_of_the_parameters(uri, capsys):
    values = yaml.safe_load(Path("params.yaml").read_text())
    train(uri, "one", changed("vqa.digit", values["promote"]["floors"]["vqa"]["digit"] - 0.001))

    with pytest.raises(typer.Exit) as ended:
        promote(tracking_uri=uri, as_json=True)
    assert ended.value.exit_code == 1
    assert [gate["name"] for gate in told(capsys)["decision"]["gates"] if not gate["is_open"]] == [
        "vqa.digit"
    ]

    train(uri, "two")
    promote(tracking_uri=uri)
    assert aliases(uri) == {"champion": "2", "challenger": "1"}


def test_figures_of_weights_that_were_trained_over_do_not_crown_the_new_ones(uri):
    train(uri, "one")
    figures = FIGURES.read_text()
    train(uri, "two")
    FIGURES.write_text(figures)

    with pytest.raises(ValueError, match=r"^the figures are of weights \w+, the model has \w+: evaluate the"):
        promote(tracking_uri=uri)


def test_figures_of_the_tuning_split_crown_nobody(uri):
    train(uri, "one", split="validation")

    with pytest.raises(ValueError, match=r"^the figures are of the split validation, only test decides"):
        promote(tracking_uri=uri)


def test_a_model_that_is_not_the_pointers_is_refused(uri):
    folder = train(uri, "one")
    (folder / "model.safetensors").write_text("half of another training")
    write_manifest(folder)

    with pytest.raises(ValueError, match=r"stage3\.json names weights \w+, .* holds \w+: train again"):
        promote(tracking_uri=uri)


def test_who_promoted_and_who_rolled_back_is_written_down(uri, capsys):
    for name, by in (("one", ""), ("two", "bob")):
        train(uri, name)
        promote(tracking_uri=uri, by=by)
    capsys.readouterr()

    rollback(tracking_uri=uri, as_json=True)

    assert told(capsys) == {"version": "1", "withdrawn": "2", "by": "ada"}
    entries = [json.loads(line) for line in Path("artifacts/promotions.jsonl").read_text().splitlines()]
    assert [
        (entry["event"], entry["version"], entry["by"]) for entry in entries if "begun" not in entry["event"]
    ] == [
        ("promoted", "1", "ada"),
        ("promoted", "2", "bob"),
        ("rolled back", "1", "ada"),
    ]


def test_a_champion_that_was_evaluated_anew_is_compared_by_its_new_figures(uri):
    folder = train(uri, "one")
    promote(tracking_uri=uri)
    anew = Path("metrics/champion.json")
    anew.write_text(json.dumps(measured(METRICS, folder, prepared_sha256="q" * 64)))
    train(uri, "two", prepared_sha256="q" * 64)

    with pytest.raises(typer.Exit):
        promote(tracking_uri=uri)
    promote(tracking_uri=uri, champion_metrics=anew)

    assert aliases(uri) == {"champion": "2"}


def test_the_user_is_the_one_named_else_the_account_else_gits(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "Grace")

    assert acting_user(" bob ") == "bob"
    assert acting_user("") == "ada"
    monkeypatch.setenv("USER", "")
    assert acting_user("") == "Grace"
    git(tmp_path, "config", "--unset", "user.name")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert acting_user("")


def chain(repository):
    for stage, parent in (("backbones", None), ("stage1", "backbones"), ("stage2", "stage1")):
        folder = publish(repository, stage, parent)
    return folder


def test_lineage_tells_the_chain_to_the_backbones_and_ends_well_when_data_have_moved_on(repository, capsys):
    folder = chain(repository)
    move_data_on(repository)

    lineage(str(folder), root=repository)

    lines = capsys.readouterr().out.splitlines()
    assert [
        line.split(":")[0]
        for line in lines
        if line and line.split(":")[0] in ("backbones", "stage1", "stage2")
    ] == [
        "stage2",
        "stage1",
        "backbones",
    ]
    assert lines.count("") == 3
    assert not [line for line in lines if "WRONG" in line]
    assert len([line for line in lines if line.startswith("  ?     data: ")]) == 3


def test_lineage_ends_with_1_when_a_link_is_wrong(repository, capsys):
    folder = chain(repository)
    (repository / "outputs/backbones/model/config.json").write_text("[]")

    with pytest.raises(typer.Exit) as ended:
        lineage(str(folder), root=repository, as_json=True)

    assert ended.value.exit_code == 1
    links = told(capsys)["chain"]
    assert [
        [check["is_right"] for check in link["checks"] if check["name"] == "weights"] for link in links
    ] == [
        [True],
        [True],
        [False],
    ]


@pytest.fixture
def on_volume(uri, repository, tmp_path):
    """A registered version whose weights lie on a volume, and that volume."""
    folder, volume = chain(repository), tmp_path / "volume"
    run = tracked_run(uri, tmp_path)
    record = read_lineage(folder)
    register(uri, "vargpt", run, folder, measured(METRICS, folder, data_md5=record.data_md5), record, volume)
    return volume


def test_the_version_in_a_replys_header_leads_to_the_data(uri, repository, on_volume, capsys):
    lineage("1", root=repository, tracking_uri=uri, as_json=True)

    found = told(capsys)
    assert found["model"] == "models:/vargpt/1" and found["record"]["model_version"] == "1"
    assert [link["stage"] for link in found["chain"]] == ["stage2", "stage1", "backbones"]
    assert {check["name"]: check["is_right"] for check in found["chain"][0]["checks"]}["data"]


def test_lineage_is_walked_without_the_volume_that_the_weights_lie_on(uri, repository, on_volume, capsys):
    shutil.rmtree(on_volume)

    lineage("1", root=repository, tracking_uri=uri, as_json=True)

    link = told(capsys)["chain"][0]
    checks = {check["name"]: check for check in link["checks"]}
    assert checks["weights"]["is_right"] is None and str(on_volume) in checks["weights"]["found"]
    assert checks["data"]["is_right"] and checks["git commit"]["is_right"]


def test_a_small_file_that_was_altered_is_wrong_without_the_weights_too(uri, repository, on_volume):
    shutil.rmtree(on_volume)
    (config,) = Path().rglob("artifacts/model-*/config.json")
    config.write_text("[]")

    with pytest.raises(typer.Exit) as ended:
        lineage("1", root=repository, tracking_uri=uri)

    assert ended.value.exit_code == 1


def test_a_challenger_is_registered_and_left_to_a_canary(uri, capsys):
    train(uri, "one")
    promote(tracking_uri=uri)
    train(uri, "two")

    promote(tracking_uri=uri, challenger=True)

    assert aliases(uri) == {"champion": "1", "challenger": "2"}
    assert "version 2 is the challenger" in capsys.readouterr().out


def test_the_champion_is_not_made_a_challenger(uri):
    train(uri, "one")
    promote(tracking_uri=uri)

    with pytest.raises(UserError, match="version 1 is the champion already"):
        promote(tracking_uri=uri, challenger=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "no pointer of a trained stage: it has no 'model'"),
        (b'{"model": "outputs/stage3/model", "weights_sha256": ""}', "it has no 'run_id'"),
        (b"[]", "must hold one JSON object, got list"),
        (b"\xff", "is not JSON"),
    ],
)
def test_a_file_that_is_no_pointer_is_refused_by_name(tmp_path, content, said):
    pointer, figures = tmp_path / "stage3.json", tmp_path / "evaluate.json"
    pointer.write_bytes(content)
    figures.write_text("{}")

    with pytest.raises(UserError, match=rf"stage3\.json.* {said}"):
        promote(pointer, figures, params=ROOT / "params.yaml")
