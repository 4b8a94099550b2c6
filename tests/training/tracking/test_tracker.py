"""Laws of tracking: training never waits for MLflow, nothing is lost, nothing counts twice."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.training.tracking.parts import FaultyProxy, history, images, steps_in, tracker_for
from training.tracking import mlflow_run
from training.tracking.mlflow_run import find_run
from training.tracking.sender import sync_spools
from training.tracking.spool import journals
from training.tracking.tracker import open_tracker

pytestmark = pytest.mark.usefixtures("impatient")

ROOT = Path(__file__).parents[3]
MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture
def proxy(mlflow_server):
    proxy = FaultyProxy(int(mlflow_server.rpartition(":")[2]))
    yield proxy
    proxy.close()


def test_all_that_is_said_arrives_once_at_a_server(mlflow_server, tmp_path):
    from mlflow import MlflowClient

    tracker = tracker_for(mlflow_server, tmp_path)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "evaluate.json").write_text("{}")

    run = tracker.start("stage1", {"schedule": {"rate": 1e-3}}, {"mlflow.source.git.commit": "c0ffee"})
    tracker.dataset("digits", MD5, "data.dvc")
    for step in range(1, 1501):
        tracker.log(step, **{"loss/text": 1 / step, "loss/image": float("nan") if step == 9 else 2.0})
    tracker.image(7, "samples/grid", Image.new("RGB", (8, 8), "red"))
    tracker.artifact(tmp_path / "metrics")
    tracker.finish(timeout_seconds=60)

    client = MlflowClient(mlflow_server)
    found = client.get_run(tracker.mlflow_run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"schedule.rate": "0.001"}
    assert found.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert found.data.tags["vargpt.run"] == run
    assert history(client, found.info.run_id, "loss/text") == [(step, 1 / step) for step in range(1, 1501)]
    assert len(history(client, found.info.run_id, "loss/image")) == 1500
    assert images(client, found.info.run_id) == ["images/samples~grid+step+7"] * 2
    assert [file.path for file in client.list_artifacts(found.info.run_id, "metrics")] == [
        "metrics/evaluate.json"
    ]
    seen = found.inputs.dataset_inputs[0]
    assert seen.dataset.digest == MD5.removesuffix(".dir")
    assert {tag.key: tag.value for tag in seen.tags}["dvc.md5"] == MD5
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_server_that_never_answers_neither_stops_nor_slows_training(proxy, mlflow_server, tmp_path, caplog):
    from mlflow import MlflowClient

    proxy.mode = "hang"
    tracker = tracker_for(proxy.uri, tmp_path)
    began = time.monotonic()

    run = tracker.start("stage1", {}, {})
    for step in range(2000):
        tracker.log(step, loss=1.0)
    logged = time.monotonic()
    tracker.finish(timeout_seconds=1.0)

    assert logged - began < 1.0
    assert time.monotonic() - logged < 1.5
    [spool] = journals(tmp_path / "spool")
    assert str(spool) in caplog.text and "`vargpt sync`" in caplog.text
    # The thread of this process is still at it; another process would find the journal free.
    copy = tmp_path / "other" / spool.name
    copy.parent.mkdir()
    copy.write_bytes(spool.read_bytes())
    report = sync_spools(copy.parent, mlflow_server)
    assert report.sent == (str(copy),) and report.reason is None
    client = MlflowClient(mlflow_server)
    assert len(history(client, find_run(client, run).info.run_id, "loss")) == 2000


@pytest.mark.parametrize("outage", ["refuse", "mute"])
def test_an_outage_in_mid_run_loses_nothing_and_doubles_nothing(
    proxy, mlflow_server, tmp_path, wait_until, caplog, outage
):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    tracker = tracker_for(proxy.uri, tmp_path)
    tracker.start("stage1", {}, {})
    for step in range(600):
        tracker.log(step, loss=float(step))
        if step == 100:
            wait_until(lambda: tracker.mlflow_run_id)
            proxy.mode = outage
        if step == 400:
            wait_until(lambda: "out of reach" in caplog.text)
            proxy.mode = "forward"
        time.sleep(0.002)
    tracker.finish(timeout_seconds=60)

    assert history(client, tracker.mlflow_run_id, "loss") == [(step, float(step)) for step in range(600)]
    assert client.get_run(tracker.mlflow_run_id).info.status == "FINISHED"


def test_without_a_server_finish_returns_and_the_next_run_sends_what_was_left(
    mlflow_db, client, tmp_path, caplog
):
    first = tracker_for("http://ada:secret@127.0.0.1:9", tmp_path)
    run = first.start("stage1", {}, {})
    first.log(1, loss=1.0)
    began = time.monotonic()
    first.finish()
    assert time.monotonic() - began < 15
    assert "`vargpt sync`" in caplog.text
    assert "secret" not in caplog.text

    second = tracker_for(mlflow_db, tmp_path)
    second.start("stage2", {}, {})
    second._sender.join(1.0)
    second.finish(timeout_seconds=30)

    found = find_run(client, run)
    assert found.info.status == "FINISHED"
    assert history(client, found.info.run_id, "loss") == [(1, 1.0)]
    assert list((tmp_path / "spool").iterdir()) == []


def test_an_experiment_opens_as_training_and_keeps_what_a_person_makes_of_it(mlflow_db, client, tmp_path):
    client.create_experiment("tests")
    for kind in (None, "genai_development"):
        if kind:
            found = client.get_experiment_by_name("tests").experiment_id
            client.set_experiment_tag(found, "mlflow.experimentKind", kind)
        tracker = tracker_for(mlflow_db, tmp_path)
        tracker.start("stage1", {}, {})
        tracker.finish(timeout_seconds=60)
        kept = client.get_experiment_by_name("tests").tags["mlflow.experimentKind"]
        assert kept == (kind or "custom_model_development")

    other = open_tracker(mlflow_db, "new", tmp_path / "spool", is_rank_zero=True)
    other.start("stage1", {}, {})
    other.finish(timeout_seconds=60)
    assert client.get_experiment_by_name("new").tags["mlflow.experimentKind"] == "custom_model_development"


def test_only_rank_zero_leaves_a_trace(tmp_path):
    tracker = open_tracker("http://127.0.0.1:9", "tests", tmp_path / "spool", is_rank_zero=False)
    assert tracker.start("stage1", {}, {}, run_id="abc") == "abc"
    tracker.log(1, loss=1.0)
    tracker.image(1, "grid", Image.new("RGB", (8, 8)))
    tracker.artifact(tmp_path)
    tracker.dataset("data", MD5, "data.dvc")
    tracker.finish()

    assert list(tmp_path.iterdir()) == []


def test_a_step_that_goes_back_is_skipped_with_one_warning(tmp_path, caplog):
    tracker = tracker_for(None, tmp_path)
    tracker.start("stage1", {}, {})
    for step in (5, 5, 4, 6):
        tracker.log(step, loss=1.0)
    tracker.finish()

    assert steps_in(journals(tmp_path / "spool")[0]) == [5, 6]
    assert caplog.text.count("skipped") == 1


def test_wrong_words_are_refused_by_name(tmp_path):
    tracker = tracker_for(None, tmp_path)
    with pytest.raises(ValueError, match=r"status must be one of .* got 'DONE'"):
        tracker.finish("DONE")
    with pytest.raises(ValueError, match=r"picture .* got 'a\*b'"):
        tracker.image(1, "a*b", Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        tracker.artifact(tmp_path / "nowhere")


def test_nothing_of_mlflow_is_imported_until_the_thread_does_so():
    code = "import sys, training.tracking; print(sorted({'mlflow', 'sqlalchemy'} & sys.modules.keys()))"

    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "[]"


def test_a_bare_database_keeps_its_artifacts_beside_it(tmp_path):
    location = mlflow_run.artifact_location(f"sqlite:///{tmp_path}/mlflow.db")

    assert location == (tmp_path / "mlartifacts").as_uri()
    assert mlflow_run.artifact_location("http://mlflow:5000") is None
