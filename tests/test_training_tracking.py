"""Laws of tracking: training never waits for MLflow, nothing is lost, nothing counts twice."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from training import mlflow_run, sender
from training.mlflow_run import find_run
from training.sender import sync_spools
from training.spool import Journal, Spool, journals
from training.tracking import open_tracker

ROOT = Path(__file__).parent.parent
MD5 = "0123456789abcdef0123456789abcdef.dir"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(sender, "SEND_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(sender, "RETRY_SECONDS", (0.1, 0.2))


@pytest.fixture
def client(mlflow_db):
    from mlflow import MlflowClient

    return MlflowClient(mlflow_db)


class Doorman:
    """Stands before a server: lets all through, shuts the door, lets callers wait, or keeps the answers."""

    def __init__(self, port: int) -> None:
        self.mode = "forward"
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        waiting = []
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            if self.mode in ("forward", "mute"):
                server = socket.create_connection(("127.0.0.1", self._port))
                for pair in ((caller, server, "mute"), (server, caller, "forward")):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()
            elif self.mode == "hang":
                waiting.append(caller)
            else:
                caller.close()

    def _carry(self, source: socket.socket, target: socket.socket, unless: str) -> None:
        with contextlib.suppress(OSError):
            while (content := source.recv(65536)) and self.mode in ("forward", unless):
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        self._listener.close()


@pytest.fixture
def doorman(mlflow_server):
    doorman = Doorman(int(mlflow_server.rpartition(":")[2]))
    yield doorman
    doorman.leave()


def tracker_for(uri: str | None, folder: Path, system_seconds: float = 60.0):
    return open_tracker(uri, "tests", folder / "spool", is_rank_zero=True, system_seconds=system_seconds)


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def images(client, run_id: str) -> list[str]:
    return [file.path.split("+timestamp")[0] for file in client.list_artifacts(run_id, "images")]


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


def test_a_server_that_never_answers_neither_stops_nor_slows_training(
    doorman, mlflow_server, tmp_path, caplog
):
    from mlflow import MlflowClient

    doorman.mode = "hang"
    tracker = tracker_for(doorman.uri, tmp_path)
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


@pytest.mark.parametrize("outage", ["shut", "mute"])
def test_an_outage_in_mid_run_loses_nothing_and_doubles_nothing(
    doorman, mlflow_server, tmp_path, wait_until, caplog, outage
):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    tracker = tracker_for(doorman.uri, tmp_path)
    tracker.start("stage1", {}, {})
    for step in range(600):
        tracker.log(step, loss=float(step))
        if step == 100:
            wait_until(lambda: tracker.mlflow_run_id)
            doorman.mode = outage
        if step == 400:
            wait_until(lambda: "out of reach" in caplog.text)
            doorman.mode = "forward"
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
from training.tracking import open_tracker
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
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, uri, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    run = writer.stdout.readline().strip()
    while (line := writer.stdout.readline().strip()) == "None" and until_reached:
        pass
    assert line
    time.sleep(0.3)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    return run


def steps_in(path: Path) -> list[int]:
    records = [record for batch, _ in Spool(path).batches() for record in batch]
    return [record["step"] for record in records if "loss" in record.get("values", ())]


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


def test_a_spool_sent_twice_counts_once(mlflow_db, client, tmp_path):
    tracker = tracker_for(None, tmp_path)
    run = tracker.start("stage1", {"a": 1}, {"b": "2"})
    for step in range(50):
        tracker.log(step, loss=1.0)
    tracker.image(3, "grid", Image.new("RGB", (8, 8)))
    tracker.finish("FAILED")
    [spool] = journals(tmp_path / "spool")
    journal, picture = spool.read_bytes(), (spool.with_suffix(".files") / "000001.png").read_bytes()

    for _ in range(2):
        spool.write_bytes(journal)
        spool.with_suffix(".files").mkdir(exist_ok=True)
        (spool.with_suffix(".files") / "000001.png").write_bytes(picture)
        assert sync_spools(tmp_path / "spool", mlflow_db).reason is None

    found = find_run(client, run)
    assert found.info.status == "FAILED"
    assert len(history(client, found.info.run_id, "loss")) == 50
    assert len(images(client, found.info.run_id)) == 2


def test_what_mlflow_refuses_is_kept_apart_and_the_rest_goes_on(mlflow_db, client, tmp_path, caplog):
    tracker = tracker_for(mlflow_db, tmp_path)
    run = tracker.start("stage1", {}, {})
    tracker.log(1, loss=1.0)
    tracker.log(2, **{"not a *valid* name": 1.0})
    tracker.log(3, loss=3.0)
    tracker.finish(timeout_seconds=30)

    assert history(client, find_run(client, run).info.run_id, "loss") == [(1, 1.0), (3, 3.0)]
    [refused] = (tmp_path / "spool").iterdir()
    assert refused.name.endswith(".refused.jsonl") and json.loads(refused.read_text())["step"] == 2
    assert str(refused) in caplog.text


def test_the_spool_of_a_live_run_is_left_alone(mlflow_db, tmp_path):
    tracker = tracker_for(None, tmp_path)
    tracker.start("stage1", {}, {})
    [spool] = journals(tmp_path / "spool")

    report = sync_spools(tmp_path / "spool", mlflow_db)

    assert report.in_use == (str(spool),) and report.sent == () and spool.exists()
    tracker.finish()
    assert sync_spools(tmp_path / "spool", mlflow_db).sent == (str(spool),)


def test_sync_says_what_it_could_not_send(tmp_path):
    tracker = tracker_for(None, tmp_path)
    tracker.start("stage1", {}, {})
    tracker.finish()

    report = sync_spools(tmp_path / "spool", "http://127.0.0.1:9")

    assert len(report.unsent) == 1 and "Failed to establish" in report.reason
    assert len(journals(tmp_path / "spool")) == 1


def test_torn_lines_cost_themselves_only(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    for step in range(3):
        journal.append({"kind": "metrics", "step": step, "values": {"loss": 1.0}})
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2] + lines[1][:9])

    [(records, end)] = Spool(tmp_path / "a.jsonl").batches()

    assert [record["step"] for record in records] == [0, 2]
    assert end == (tmp_path / "a.jsonl").stat().st_size - 9


def test_a_full_disk_costs_records_but_not_the_training(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("a small file system can only be mounted as root")
    try:
        tracker = tracker_for(None, disk)
        tracker.start("stage1", {}, {})
        for step in range(2000):
            tracker.log(step, loss=1.0)
        tracker.image(1, "grid", Image.effect_noise((256, 256), 90))
        [spool] = journals(disk / "spool")
        kept = steps_in(spool)
        tracker.finish()
    finally:
        subprocess.run(["umount", disk], check=True)

    assert kept == list(range(len(kept))) and 100 < len(kept) < 2000
    assert caplog.text.count("could not be written") == 1
    assert "No space left" in caplog.text


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

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert loaded.stdout.strip() == "[]"


def test_a_bare_database_keeps_its_artifacts_beside_it(tmp_path):
    location = mlflow_run.artifact_location(f"sqlite:///{tmp_path}/mlflow.db")

    assert location == (tmp_path / "mlartifacts").as_uri()
    assert mlflow_run.artifact_location("http://mlflow:5000") is None


CREATOR = """
import sys
from pathlib import Path
from training.tracking import open_tracker
folder = Path(sys.argv[1])
tracker = open_tracker(f"sqlite:///{folder}/mlflow.db", "tests", folder / "spool", True)
print(tracker.start("stage1", {}, {}), flush=True)
tracker.log(1, loss=1.0)
tracker.finish(timeout_seconds=60)
"""


def creator(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CREATOR, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


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
