"""Laws of the spool: what is not sent yet is kept, sent once, and lost to nothing but itself."""

import json
import math
import os
import subprocess

import pytest
from PIL import Image

from tests.training.tracking.parts import history, images, steps_in, tracker_for
from training.tracking.mlflow_run import find_run
from training.tracking.sender import sync_spools
from training.tracking.spool import Journal, Spool, journals

pytestmark = pytest.mark.usefixtures("impatient")


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


def test_every_line_is_json_even_of_a_loss_that_is_no_number(mlflow_db, client, tmp_path):
    losses = {"loss/nan": float("nan"), "loss/high": float("inf"), "loss/low": -float("inf")}
    tracker = tracker_for(None, tmp_path)
    run = tracker.start("stage1", {"limit": float("inf")}, {})
    tracker.log(1, **losses)
    tracker.finish()
    [spool] = journals(tmp_path / "spool")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    for line in spool.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    sync_spools(tmp_path / "spool", mlflow_db)

    arrived = find_run(client, run).data.metrics
    assert math.isnan(arrived["loss/nan"])
    # The database keeps infinity as its largest number.
    assert arrived["loss/high"] > 1e300 and arrived["loss/low"] < -1e300


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
