"""Laws of promotion: only the gates let a champion in, there is a way back, and all is written down."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from model.manifest import manifest_sha256, verify
from tests.training.registry.candidates import FLOORS, MARGINS, METRICS, aliases, candidate, changed, measured
from training.registry.lineage import read_lineage
from training.registry.promotion import promote, roll_back
from training.registry.versions import replace_figures


def crown(uri, version, by="ada", margins=MARGINS, record=None):
    return promote(uri, "vargpt", version, margins, FLOORS, by, record)


def told(record):
    """(event, version, version before, who) of every line."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [(line["event"], line["version"], line["from"], line["by"]) for line in lines]


def test_a_whole_life_on_a_server(mlflow_server, tmp_path, monkeypatch, capfd):
    # Downloads of models:/ know no other way to be told where the registry is.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    client = MlflowClient(mlflow_server, mlflow_server)
    record = tmp_path / "promotions.jsonl"

    first = candidate(mlflow_server, tmp_path, "one", METRICS)
    promotion = crown(mlflow_server, first, record=record)
    assert promotion.is_champion and aliases(mlflow_server) == {"champion": first}
    assert promotion.report.startswith(
        f"version {first} is the champion now, after nothing\n  draw.all_right: passed"
    )

    again = crown(mlflow_server, first, record=record)
    assert again.is_champion and not again.has_changed
    assert again.report == f"version {first} is the champion already"

    worse = candidate(mlflow_server, tmp_path, "two", changed("vqa.digit", 0.90))
    refused = crown(mlflow_server, worse, by="bob", record=record)
    assert not refused.is_champion
    assert refused.report == (
        f"version {worse} is the challenger; the champion stays version {first}\n"
        "  vqa.digit: failed by 0.0700: 0.9000, must be at least 0.9700 (best champion 0.9800)"
    )
    assert aliases(mlflow_server) == {"champion": first, "challenger": worse}

    better = candidate(mlflow_server, tmp_path, "three", changed("vqa.digit", 1.0))
    assert crown(mlflow_server, better, by="eve", record=record).is_champion
    assert aliases(mlflow_server) == {"champion": better, "challenger": worse}

    tags = client.get_model_version("vargpt", better).tags
    assert (tags["promoted_by"], tags["promoted_from"]) == ("eve", first) and tags["promoted_at"]
    assert told(record) == [
        ("begun: promoted", first, None, "ada"),
        ("promoted", first, None, "ada"),
        ("refused", worse, first, "bob"),
        ("begun: promoted", better, first, "eve"),
        ("promoted", better, first, "eve"),
    ]
    run_id = client.get_model_version("vargpt", worse).run_id
    [kept] = client.list_artifacts(run_id, "promotions")
    copy = json.loads(Path(download_artifacts(run_id=run_id, artifact_path=kept.path)).read_text())
    assert copy == json.loads(record.read_text().splitlines()[2])

    fresh = tmp_path / "downloaded"
    fresh.mkdir()
    downloaded = Path(download_artifacts("models:/vargpt@champion", dst_path=str(fresh)))
    verify(downloaded)
    lineage = read_lineage(downloaded)
    assert (lineage.model_version, lineage.weights_sha256) == (better, manifest_sha256(downloaded))
    assert lineage.run_id == client.get_model_version("vargpt", better).run_id
    assert capfd.readouterr().out == ""


def test_figures_of_nought_do_not_become_the_first_champion(mlflow_db, tmp_path):
    nought = {
        "draw": dict.fromkeys(METRICS["draw"], 0.0),
        "vqa": {"digit": 0.0},
        "pope": {"adversarial": 0.0},
    }
    candidate(mlflow_db, tmp_path, "one", nought)

    refused = crown(mlflow_db, "1")

    assert [gate.name for gate in refused.decision.failed] == ["draw.all_right", "vqa.digit"]
    assert aliases(mlflow_db) == {"challenger": "1"}


def test_champions_cannot_lose_a_margin_each_time(mlflow_db, tmp_path):
    for number, digit in enumerate((0.98, 0.97, 0.96), start=1):
        candidate(mlflow_db, tmp_path, f"{number}", changed("vqa.digit", digit))
    assert crown(mlflow_db, "1").is_champion
    assert crown(mlflow_db, "2").is_champion

    assert [str(gate) for gate in crown(mlflow_db, "3").decision.failed] == [
        "vqa.digit: failed by 0.0100: 0.9600, must be at least 0.9700 (best champion 0.9800)"
    ]


def test_a_better_challenger_is_no_challenger_once_promoted(mlflow_db, tmp_path):
    candidate(mlflow_db, tmp_path, "one", METRICS)
    crown(mlflow_db, "1")
    candidate(mlflow_db, tmp_path, "two", changed("draw.unseen", 0.85))
    assert not crown(mlflow_db, "2").is_champion

    assert crown(mlflow_db, "2", margins=MARGINS | {"draw": {"unseen": 0.06}}).is_champion

    assert aliases(mlflow_db) == {"champion": "2"}


@pytest.mark.parametrize(
    "other",
    [{"prepared_sha256": "q" * 64}, {"questions": 10}, {"drawings": 5}, {"data_md5": "e" * 32 + ".dir"}],
)
def test_scores_of_another_test_set_are_not_compared_unless_the_champion_is_evaluated_anew(
    mlflow_db, tmp_path, other
):
    candidate(mlflow_db, tmp_path, "one", changed("vqa.digit", 0.5))
    crown(mlflow_db, "1")
    data = {"data": other["data_md5"]} if "data_md5" in other else other
    candidate(mlflow_db, tmp_path, "two", METRICS, **data)

    refused = crown(mlflow_db, "2")
    assert not refused.is_champion
    assert "vargpt evaluate --model models:/vargpt@champion" in refused.report

    anew = measured(METRICS, tmp_path / "model-one", **other)
    replace_figures(mlflow_db, "vargpt", "champion", anew)
    assert crown(mlflow_db, "2").is_champion


def test_the_champion_is_not_given_figures_of_other_weights(mlflow_db, tmp_path):
    candidate(mlflow_db, tmp_path, "one", METRICS)
    crown(mlflow_db, "1")
    candidate(mlflow_db, tmp_path, "two", METRICS)

    with pytest.raises(ValueError, match=r"the figures are of weights \w+, the champion has"):
        replace_figures(mlflow_db, "vargpt", "champion", measured(METRICS, tmp_path / "model-two"))


def test_rollback_goes_to_the_champion_before_and_further_when_it_is_repeated(mlflow_db, tmp_path):
    record = tmp_path / "promotions.jsonl"
    for number in range(1, 4):
        candidate(mlflow_db, tmp_path, f"{number}", METRICS)
        crown(mlflow_db, f"{number}")

    first = roll_back(mlflow_db, "vargpt", "bob", record)
    assert (first.version, first.withdrawn) == ("2", "3")
    assert aliases(mlflow_db) == {"champion": "2"}
    assert roll_back(mlflow_db, "vargpt", "eve", record).version == "1"
    with pytest.raises(ValueError, match="vargpt has no champion before version 1"):
        roll_back(mlflow_db, "vargpt", "bob", record)

    assert told(record) == [
        ("begun: rolled back", "2", "3", "bob"),
        ("rolled back", "2", "3", "bob"),
        ("begun: rolled back", "1", "2", "eve"),
        ("rolled back", "1", "2", "eve"),
    ]
    tags = MlflowClient(mlflow_db, mlflow_db).get_model_version("vargpt", "3").tags
    assert tags["rolled_back_by"] == "bob" and tags["rolled_back_at"]


def test_a_champion_that_returns_is_rolled_back_to_the_one_it_replaced(mlflow_db, tmp_path):
    for number in range(1, 3):
        candidate(mlflow_db, tmp_path, f"{number}", METRICS)
        crown(mlflow_db, f"{number}")
    crown(mlflow_db, "1")

    assert [roll_back(mlflow_db, "vargpt", "bob").version for _ in range(2)] == ["2", "1"]
    assert crown(mlflow_db, "2").is_champion
    assert "rolled_back_by" not in MlflowClient(mlflow_db, mlflow_db).get_model_version("vargpt", "2").tags


def test_a_withdrawn_champion_sets_no_bar(mlflow_db, tmp_path):
    for number, digit in enumerate((0.97, 1.0, 0.965), start=1):
        candidate(mlflow_db, tmp_path, f"{number}", changed("vqa.digit", digit))
    crown(mlflow_db, "1")
    crown(mlflow_db, "2")
    assert not crown(mlflow_db, "3").is_champion

    roll_back(mlflow_db, "vargpt", "bob")

    assert crown(mlflow_db, "3").is_champion


def test_rollback_passes_over_a_version_that_was_deleted(mlflow_db, tmp_path):
    for number in range(1, 4):
        candidate(mlflow_db, tmp_path, f"{number}", METRICS)
        crown(mlflow_db, f"{number}")
    MlflowClient(mlflow_db, mlflow_db).delete_model_version("vargpt", "2")

    assert roll_back(mlflow_db, "vargpt", "bob").version == "1"


def test_an_alias_that_was_moved_by_hand_counts(mlflow_db, tmp_path):
    for number in range(1, 3):
        candidate(mlflow_db, tmp_path, f"{number}", METRICS)
    crown(mlflow_db, "1")
    MlflowClient(mlflow_db, mlflow_db).set_registered_model_alias("vargpt", "champion", "2")

    assert roll_back(mlflow_db, "vargpt", "bob").version == "1"


def test_an_alias_that_was_taken_away_by_hand_is_no_champion_but_keeps_the_bar(mlflow_db, tmp_path):
    for number, digit in enumerate((0.98, 0.9), start=1):
        candidate(mlflow_db, tmp_path, f"{number}", changed("vqa.digit", digit))
    crown(mlflow_db, "1")
    MlflowClient(mlflow_db, mlflow_db).delete_registered_model_alias("vargpt", "champion")

    with pytest.raises(ValueError, match=r"vargpt has no champion$"):
        roll_back(mlflow_db, "vargpt", "bob")
    assert not crown(mlflow_db, "2").is_champion
    assert crown(mlflow_db, "1").has_changed
    model = MlflowClient(mlflow_db, mlflow_db).get_registered_model("vargpt")
    assert (str(model.aliases["champion"]), model.tags["vargpt.champions"]) == ("1", "1")


@pytest.mark.parametrize("by", ["", "  "])
def test_somebody_must_answer_for_a_promotion_and_for_a_rollback(by):
    with pytest.raises(ValueError, match="by must name who promotes"):
        crown("http://127.0.0.1:9", "1", by=by)
    with pytest.raises(ValueError, match="by must name who promotes"):
        roll_back("http://127.0.0.1:9", "vargpt", by)


def test_what_the_registry_does_not_know_is_named(mlflow_db):
    with pytest.raises(ValueError, match="no version 7 of vargpt"):
        crown(mlflow_db, "7")
    with pytest.raises(ValueError, match="no registered model vargpt"):
        roll_back(mlflow_db, "vargpt", "ada")
    with pytest.raises(ValueError, match="vargpt has no champion"):
        replace_figures(mlflow_db, "vargpt", "champion", METRICS)


def test_a_registry_out_of_reach_is_one_clear_error_without_the_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(ConnectionError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be reached") as caught:
        crown("http://ada:secret@127.0.0.1:9", "1")
    assert "secret" not in str(caught.value)
