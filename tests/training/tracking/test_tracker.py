"""Laws of tracking: training never waits for MLflow, nothing is lost, nothing counts twice."""

import json
import signal
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


WRITER = """
import sys, time
from pathlib import Path
from PIL import Image
from training.tracking.tracker import open_tracker
tracker = open_tracker(sys.argv[1] or None, "tests", Path(sys.argv[2]) / "spool", True, 0.05)
print(tracker.start("stage1", {"rate": 1}, {}), flush=True)
for step in range(1, 100_000):
    tracker.log(step, loss=float(step))
    if step == 30:
        tracker.image(step, "grid", Image.new("RGB", (8, 8)))
    if step % 100 == 0:
        print(tracker.mlflow_run_id, flush=True)
        time.sleep(0.05)
"""


def killed_run(uri: str, folder: Path, until_reached: bool) -> str:
    """Start a training that logs, kill it in the midst, and return its run's name."""
    command = [sys.executable, "-c", WRITER, uri, str(folder)]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    run = writer.stdout.readline().strip()
    while (line := writer.stdout.readline().strip()) == "None" and until_reached:
        pass
    assert line
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    return run


@pytest.mark.parametrize("reached", ["database", "server", "nothing"])
def test_a_killed_job_that_is_resumed_stays_one_run_with_every_step_once(request, tmp_path, reached):
    from mlflow import MlflowClient

    uri = request.getfixturevalue("mlflow_server" if reached == "server" else "mlflow_db")
    run = killed_run("" if reached == "nothing" else uri, tmp_path, until_reached=reached != "nothing")
    [spool] = journals(tmp_path / "spool")
    last = json.loads([line for line in spool.read_bytes().splitlines() if b"loss" in line][-1])["step"]

    resumed = tracker_for(uri, tmp_path)
    assert resumed.start("stage1", {"rate": 2}, {}, run_id=run) == run
    for step in range(last - 20, last + 5):
        resumed.log(step, loss=float(step))
    resumed.image(30, "grid", Image.new("RGB", (8, 8)))
    resumed.image(31, "grid", Image.new("RGB", (8, 8)))
    resumed.finish(timeout_seconds=60)

    client = MlflowClient(uri)
    found = find_run(client, run)
    same = f"tags.`vargpt.run` = '{run}'"
    assert len(client.search_runs([found.info.experiment_id], same)) == 1
    assert found.info.status == "FINISHED"
    assert history(client, found.info.run_id, "loss") == [(step, float(step)) for step in range(1, last + 5)]
    assert (
        sorted(images(client, found.info.run_id)) == ["images/grid+step+30"] * 2 + ["images/grid+step+31"] * 2
    )
    assert found.data.params == {"rate": "1"} and found.data.tags["changed.rate"] == "2"
    assert journals(tmp_path / "spool") == []


def test_a_killed_job_that_nobody_resumes_is_closed_as_killed_by_sync(mlflow_db, client, tmp_path):
    run = killed_run("", tmp_path, until_reached=False)
    [spool] = journals(tmp_path / "spool")
    with spool.open("ab") as file:
        file.write(b'{"kind": "metrics", "st')
    steps = steps_in(spool)

    report = sync_spools(tmp_path / "spool", mlflow_db)

    assert report.sent == (str(spool),)
    found = find_run(client, run)
    assert found.info.status == "KILLED"
    assert [step for step, _ in history(client, found.info.run_id, "loss")] == steps
    assert "system/cpu_utilization_percentage" in found.data.metrics


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


CREATOR = """
import sys
from pathlib import Path
from training.tracking.tracker import open_tracker
folder = Path(sys.argv[1])
tracker = open_tracker(f"sqlite:///{folder}/mlflow.db", "tests", folder / "spool", True)
print(tracker.start("stage1", {}, {}), flush=True)
tracker.log(1, loss=1.0)
tracker.finish(timeout_seconds=60)
"""


def creator(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", CREATOR, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_database_that_does_not_exist_yet_survives_kills_and_company(tmp_path, wait_until):
    from mlflow import MlflowClient

    killed = creator(tmp_path)
    wait_until((tmp_path / "mlflow.db.new").exists)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    runs = [killed.communicate()[0].strip()]
    both = [creator(tmp_path) for _ in range(2)]
    runs += [process.communicate()[0].strip() for process in both]
    assert sync_spools(tmp_path / "spool", f"sqlite:///{tmp_path}/mlflow.db").unsent == ()

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert [history(client, find_run(client, run).info.run_id, "loss") for run in runs] == [[(1, 1.0)]] * 3
    assert journals(tmp_path / "spool") == []
