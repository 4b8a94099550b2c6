"""Laws of promotion: both abilities must hold their ground, the reason is told, and nothing is forgotten."""

import copy
import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from model.manifest import manifest_sha256, verify, write_manifest
from training.registry.gates import decide
from training.registry.lineage import Lineage, read_lineage
from training.registry.versions import promote, register
from training.tracking.tracker import open_tracker

METRICS = {
    "draw": {"all_right": 0.97, "unseen": 0.90, "frechet_ratio": 1.8},
    "vqa": {"digit": 0.98, "color": 0.99, "background": 1.0},
    "pope": {"random": 0.97, "popular": 0.96, "adversarial": 0.95},
    "draw_and_describe": 0.95,
    "tokenizer": {"psnr": 29.5, "judge": 0.98},
}
MARGINS = {
    "draw": {"all_right": 0.01, "unseen": 0.02, "frechet_ratio": 0.2},
    "vqa": {"digit": 0.01},
    "pope": {"adversarial": 0.01},
}


def changed(name: str, value: float) -> dict:
    """The metrics with one of them replaced."""
    metrics = copy.deepcopy(METRICS)
    group, _, key = name.partition(".")
    if key:
        metrics[group][key] = value
    else:
        metrics[group] = value
    return metrics


def failed(*arguments) -> list[str]:
    return [gate.name for gate in decide(*arguments).failed]


def test_an_equal_model_passes():
    assert decide(METRICS, METRICS, MARGINS).is_yes


@pytest.mark.parametrize(
    ("name", "just_enough", "too_little"),
    [
        ("draw.all_right", 0.96, 0.9599),
        ("draw.unseen", 0.88, 0.8799),
        ("draw.frechet_ratio", 2.0, 2.0001),
        ("vqa.digit", 0.97, 0.9699),
        ("pope.adversarial", 0.94, 0.9399),
    ],
)
def test_a_loss_up_to_the_margin_passes_and_beyond_it_fails(name, just_enough, too_little):
    assert failed(changed(name, just_enough), METRICS, MARGINS) == []
    assert failed(changed(name, too_little), METRICS, MARGINS) == [name]


def test_a_gain_in_drawing_does_not_pay_for_a_loss_in_understanding_nor_the_other_way():
    better_drawing = changed("draw.all_right", 1.0) | {"vqa": {"digit": 0.9}}
    better_understanding = changed("vqa.digit", 1.0) | {"draw": METRICS["draw"] | {"unseen": 0.5}}

    assert failed(better_drawing, METRICS, MARGINS) == ["vqa.digit"]
    assert failed(better_understanding, METRICS, MARGINS) == ["draw.unseen"]


def test_a_failed_gate_says_by_how_much():
    [gate] = decide(changed("draw.unseen", 0.80), METRICS, MARGINS).failed

    assert math.isclose(gate.short_by, 0.08)
    assert str(gate) == "draw.unseen: failed by 0.0800: 0.8000, must be >= 0.8800 (champion 0.9000)"


def test_the_first_version_passes_without_floors_and_must_reach_those_that_are_given():
    assert decide(METRICS, None, MARGINS).is_yes
    assert failed(METRICS, None, MARGINS, {"draw": {"all_right": 0.98}}) == ["draw.all_right"]
    assert failed(METRICS, None, MARGINS, {"tokenizer": {"psnr": 27}}) == []


def test_margins_cannot_carry_a_line_of_champions_below_the_floor():
    assert failed(
        changed("vqa.digit", 0.955), changed("vqa.digit", 0.96), MARGINS, {"vqa": {"digit": 0.96}}
    ) == ["vqa.digit"]


def test_a_value_that_is_no_number_never_passes():
    assert failed(changed("vqa.digit", math.nan), METRICS, MARGINS) == ["vqa.digit"]
    assert failed(changed("vqa.digit", math.nan), None, MARGINS) == ["vqa.digit"]
    assert failed(changed("draw.frechet_ratio", math.inf), METRICS, MARGINS) == ["draw.frechet_ratio"]


def test_a_champion_without_a_gated_value_keeps_the_gate_shut():
    old = copy.deepcopy(METRICS)
    del old["draw"]["unseen"]

    [gate] = decide(METRICS, old, MARGINS).failed

    assert str(gate) == "draw.unseen: the champion has no value to compare 0.9000 with"


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"vqa": {"digit": 0.01}}, "no metric of drawing"),
        ({"draw": {"all_right": 0.01}}, "no metric of understanding"),
        (MARGINS | {"vqa": {"digit": -0.1}}, r"margin of vqa\.digit must be .* got -0\.1"),
        (MARGINS | {"vqa": {"digit": math.nan}}, r"margin of vqa\.digit must be"),
        (MARGINS | {"vqa": {"shape": 0.1}}, r"no vqa\.shape"),
    ],
)
def test_margins_that_gate_too_little_or_nonsense_are_refused(margins, message):
    with pytest.raises(ValueError, match=message):
        decide(METRICS, METRICS, margins)


def model_folder(parent: Path, content: bytes) -> Path:
    folder = parent / f"model-{content.decode()}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return folder


def trained(uri: str, folder: Path, name: str, metrics: dict, data: str = "d" * 32 + ".dir") -> str:
    """Track a run, publish weights, and register them, as a whole training would."""
    tracker = open_tracker(uri, "tests", folder / "spool", is_rank_zero=True, system_seconds=60)
    run = tracker.start("stage3", {}, {})
    tracker.finish(timeout_seconds=60)
    lineage = Lineage(data_md5=data, config_sha256="c" * 64, git_commit="a" * 40, git_dirty=False)
    return register(uri, "vargpt", run, model_folder(folder, name.encode()), metrics, lineage)


def aliases(uri: str) -> dict[str, str]:
    found = MlflowClient(uri, uri).get_registered_model("vargpt").aliases
    return {alias: str(version) for alias, version in found.items()}


def test_a_whole_life_on_a_server(mlflow_server, tmp_path, monkeypatch, capfd):
    # Downloads of models:/ know no other way to be told where the registry is.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    client = MlflowClient(mlflow_server, mlflow_server)
    record = tmp_path / "promotions.jsonl"

    first = trained(mlflow_server, tmp_path, "one", METRICS)
    promotion = promote(mlflow_server, "vargpt", first, MARGINS, by="ada", record=record)
    assert promotion.is_champion and aliases(mlflow_server) == {"champion": first}
    assert promotion.report.startswith(
        f"version {first} is the champion now, after nothing\n  draw.all_right: passed"
    )

    again = promote(mlflow_server, "vargpt", first, MARGINS, by="ada", record=record)
    assert again.is_champion and not again.has_changed
    assert again.report == f"version {first} is the champion already"

    worse = trained(mlflow_server, tmp_path, "two", changed("vqa.digit", 0.90))
    refused = promote(mlflow_server, "vargpt", worse, MARGINS, by="bob", record=record)
    assert not refused.is_champion
    assert refused.report == (
        f"version {worse} is the challenger; the champion stays version {first}\n"
        "  vqa.digit: failed by 0.0700: 0.9000, must be >= 0.9700 (champion 0.9800)"
    )
    assert aliases(mlflow_server) == {"champion": first, "challenger": worse}

    better = trained(mlflow_server, tmp_path, "three", changed("vqa.digit", 1.0))
    assert promote(mlflow_server, "vargpt", better, MARGINS, by="eve", record=record).is_champion
    assert aliases(mlflow_server) == {"champion": better, "challenger": worse}

    tags = client.get_model_version("vargpt", better).tags
    assert (tags["promoted_by"], tags["promoted_from"]) == ("eve", first) and tags["promoted_at"]
    history = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(entry["version"], entry["promoted"], entry["by"]) for entry in history] == [
        (first, True, "ada"),
        (worse, False, "bob"),
        (better, True, "eve"),
    ]
    run_id = client.get_model_version("vargpt", worse).run_id
    [kept] = client.list_artifacts(run_id, "promotions")
    assert (
        json.loads(Path(download_artifacts(run_id=run_id, artifact_path=kept.path)).read_text()) == history[1]
    )

    fresh = tmp_path / "downloaded"
    fresh.mkdir()
    downloaded = Path(download_artifacts("models:/vargpt@champion", dst_path=str(fresh)))
    verify(downloaded)
    lineage = read_lineage(downloaded)
    assert lineage == read_lineage(tmp_path / "model-three")
    assert (lineage.model_version, lineage.weights_sha256) == (better, manifest_sha256(downloaded))
    assert lineage.run_id == client.get_model_version("vargpt", better).run_id
    assert capfd.readouterr().out == ""


def test_a_better_challenger_is_no_challenger_once_promoted(mlflow_db, tmp_path):
    trained(mlflow_db, tmp_path, "one", METRICS)
    promote(mlflow_db, "vargpt", "1", MARGINS)
    trained(mlflow_db, tmp_path, "two", changed("draw.unseen", 0.85))
    assert not promote(mlflow_db, "vargpt", "2", MARGINS).is_champion

    assert promote(mlflow_db, "vargpt", "2", MARGINS | {"draw": {"unseen": 0.06}}).is_champion

    assert aliases(mlflow_db) == {"champion": "2"}


def test_scores_on_other_data_are_not_compared_unless_the_champion_is_evaluated_anew(mlflow_db, tmp_path):
    trained(mlflow_db, tmp_path, "one", METRICS)
    promote(mlflow_db, "vargpt", "1", MARGINS)
    trained(mlflow_db, tmp_path, "two", METRICS, data="e" * 32 + ".dir")

    refused = promote(mlflow_db, "vargpt", "2", MARGINS)
    assert not refused.is_champion and "evaluate the champion on the new data" in refused.report

    assert promote(mlflow_db, "vargpt", "2", MARGINS, champion_metrics=METRICS).is_champion


def test_the_same_weights_of_a_run_are_one_version_with_the_newest_metrics(mlflow_db, tmp_path):
    assert trained(mlflow_db, tmp_path, "one", METRICS) == "1"
    record = read_lineage(tmp_path / "model-one")
    newer = changed("vqa.digit", 0.5)

    assert register(mlflow_db, "vargpt", record.run_id, tmp_path / "model-one", newer, record) == "1"

    client = MlflowClient(mlflow_db, mlflow_db)
    assert len(client.search_model_versions("name = 'vargpt'")) == 1
    assert json.loads(client.get_model_version("vargpt", "1").tags["vargpt.metrics"]) == newer


def test_other_weights_of_the_same_run_leave_the_first_version_as_it_was(mlflow_db, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_db)
    trained(mlflow_db, tmp_path, "one", METRICS)
    record = read_lineage(tmp_path / "model-one")
    other = model_folder(tmp_path, b"other")
    fresh = Lineage(data_md5=record.data_md5, config_sha256=record.config_sha256)

    assert register(mlflow_db, "vargpt", record.run_id, other, METRICS, fresh) == "2"

    for version, content in (("1", b"one"), ("2", b"other")):
        folder = Path(download_artifacts(f"models:/vargpt/{version}"))
        verify(folder)
        assert (folder / "model.safetensors").read_bytes() == content


def test_a_damaged_folder_is_not_registered(mlflow_db, tmp_path):
    trained(mlflow_db, tmp_path, "one", METRICS)
    record = read_lineage(tmp_path / "model-one")
    (tmp_path / "model-one" / "config.json").write_text("[]")

    with pytest.raises(ValueError, match=r"config\.json has SHA-256"):
        register(mlflow_db, "vargpt", record.run_id, tmp_path / "model-one", METRICS, record)


def test_weights_that_the_record_does_not_name_are_not_registered(mlflow_db, tmp_path):
    trained(mlflow_db, tmp_path, "one", METRICS)
    record = read_lineage(tmp_path / "model-one")

    with pytest.raises(ValueError, match="the lineage record says"):
        register(mlflow_db, "vargpt", record.run_id, model_folder(tmp_path, b"other"), METRICS, record)


def test_what_the_registry_does_not_know_is_named(mlflow_db, tmp_path):
    lineage = Lineage(data_md5="d", config_sha256="c")
    with pytest.raises(ValueError, match=r"knows no run 'abc'.*`vargpt sync`"):
        register(mlflow_db, "vargpt", "abc", model_folder(tmp_path, b"x"), METRICS, lineage)
    with pytest.raises(ValueError, match="no version 7 of vargpt"):
        promote(mlflow_db, "vargpt", "7", MARGINS)


def test_a_registry_out_of_reach_is_one_clear_error_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(ValueError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be reached") as caught:
        promote("http://ada:secret@127.0.0.1:9", "vargpt", "1", MARGINS)
    assert "secret" not in str(caught.value)
