"""Laws of an evaluation's run in MLflow: it says what was measured, with the lineage of that model."""

from PIL import Image

from training.evaluation.tracked_run import track_evaluation
from training.registry.lineage import Lineage, write_lineage

METRICS = {
    "subject": {
        "weights_sha256": "w" * 64,
        "data_md5": "0" * 32 + ".dir",
        "prepared_sha256": "p" * 64,
        "split": "test",
        "questions": 12,
        "drawings": 6,
    },
    "draw": {"all_right": 0.5, "n": 6},
    "intervals": {"draw": {"all_right": [0.1, 0.9]}},
    "draw_and_describe": None,
}


def test_an_evaluation_is_a_run_of_its_own_that_names_the_model_and_its_figures(mlflow_db, client, tmp_path):
    model, plots = tmp_path / "model", tmp_path / "plots"
    model.mkdir()
    plots.mkdir()
    Image.new("RGB", (8, 8)).save(plots / "drawings.png")
    write_lineage(Lineage(stage="stage3", data_md5="d", config_sha256="c", run_id="trained"), model)

    track_evaluation("models:/vargpt@champion", model, METRICS, plots, mlflow_db, tmp_path / "spool")

    [run] = client.search_runs([client.get_experiment_by_name("vargpt").experiment_id])
    assert run.data.tags["vargpt.stage"] == run.data.params["stage"] == "evaluate"
    assert run.data.params["model"] == "models:/vargpt@champion"
    assert (run.data.params["split"], run.data.params["weights_sha256"]) == ("test", "w" * 64)
    assert run.data.tags["vargpt.run_id"] == "trained"
    figures = {key: value for key, value in run.data.metrics.items() if not key.startswith("system/")}
    assert figures == {"eval/draw/all_right": 0.5, "eval/draw/n": 6.0}
    assert run.inputs.dataset_inputs[0].dataset.digest == "0" * 32
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/drawings.png"]
