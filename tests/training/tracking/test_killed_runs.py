"""Laws of a job that is killed: what it said reaches MLflow once, resumed or not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.training.tracking.parts import history, images, steps_in, tracker_for
from training.tracking.mlflow_run import find_run
from training.tracking.sender import sync_spools
from training.tracking.spool import journals

pytestmark = pytest.mark.usefixtures("impatient")

ROOT = Path(__file__).parents[3]

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
