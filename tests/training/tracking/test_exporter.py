"""Laws of the exporter: Prometheus reads what MLflow is told, and how old the newest checkpoint is."""

import json
import socket
import urllib.request

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.training.volume import write_params, write_volume
from training.launching.stage_process import main, metrics_exporter
from training.stages import throughput
from training.stages.step_metrics import SpikeDetector
from training.tracking.exporter import MetricsExporter
from training.tracking.tracker import open_tracker

SHORT = {"steps": 5, "batch": 4, "lr": 2e-3, "warmup": 2, "checkpoint_every": 2, "validate_every": 5}
# What Prometheus calls otherwise, or measures in another unit.
RENAMED = {
    "teraflops": ("flops_per_second", 1e12),
    "mfu": ("mfu_ratio", 1),
    "validation": ("validation_loss", 1),
    "gradient_norm_of": ("gradient_norm_by_part", 1),
    "gpu_peak_gigabytes": ("gpu_peak_bytes", 1e9),
    "peak_memory_gigabytes": ("peak_memory_bytes", 1e9),
    "cost/device_hours": ("device_seconds", 3600),
}


def read(port):
    """Every sample by its name and labels."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {
        (sample.name, *sorted(value for key, value in sample.labels.items() if key != "stage")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def port():
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def told_in_a_run(folder):
    """The last value of each metric that the trainer told the tracker, by its name in MLflow."""
    [spool] = folder.glob("spool/*.jsonl")
    records = [json.loads(line) for line in spool.read_text().splitlines()]
    # The tracker's own metrics of the machine have no step; Prometheus has exporters for these.
    told = [record for record in records if record["kind"] == "metrics" and record["step"] is not None]
    return {name: value for record in told for name, value in record["values"].items()}


@pytest.mark.slow
def test_prometheus_reads_every_metric_that_a_run_tells_mlflow(tmp_path, port, monkeypatch):
    params = write_params(tmp_path, **SHORT)
    values = yaml.safe_load(params.read_text())
    values["data"]["held_out"] = 0.2
    params.write_text(yaml.safe_dump(values))
    write_volume(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARGPT_METRICS_PORT", str(port))
    # Stand-ins for a GPU, whose peak is known, and for a loss that leaps.
    monkeypatch.setattr(throughput, "peak_flops", lambda _: 1e12)
    monkeypatch.setattr(SpikeDetector, "is_spike", lambda *_: True)

    # An address that nobody answers: what was told stays in the spool.
    assert main(["stage1", "--size", "smoke", "--tracking-uri", "http://127.0.0.1:9"]) == 0
    told, found = told_in_a_run(tmp_path), read(port)

    groups = {"loss", "validation", "gradient_norm_of", "teraflops", "mfu", "lost", "cost"}
    assert groups <= {name.partition("/")[0] for name in told}
    assert {"loss_spikes", "step_seconds", "checkpoint_write_seconds", "samples_per_second"} <= told.keys()
    for name, value in told.items():
        group, _, part = name.partition("/")
        if name in RENAMED or group == "lost":
            part = ""
        renamed, factor = RENAMED.get(name) or RENAMED.get(group) or (group, 1)
        key = (f"vargpt_training_{renamed if group != 'lost' else name[5:]}", *filter(None, [part]))
        assert found[key] == pytest.approx(value * factor), name
    assert not [key for key in found if key[0] == "vargpt_training_other"], "each has a series of its own"


@pytest.mark.parametrize("is_rank_zero", [True, False])
def test_prometheus_reads_what_a_tracker_is_told_on_every_rank(tmp_path, port, is_rank_zero):
    exporter = MetricsExporter("stage1", tmp_path)
    exporter.serve(port)
    tracker = open_tracker(None, "vargpt", tmp_path / "spool", is_rank_zero, exporter=exporter)
    tracker.start("stage1", {"steps": 60, "checkpoint_every": 30}, {})

    tracker.log(5, **{"loss/text": 2.5, "gpu_peak_gigabytes": 70.0, "data_seconds": 0.25})
    tracker.log(10, **{"loss/text": float("nan"), "gpu_peak_gigabytes": 71.5, "data_seconds": 0.5})
    found = read(port)
    tracker.finish()

    assert found["vargpt_training_step",] == 10
    assert found["vargpt_training_steps",] == 60
    assert found["vargpt_training_checkpoint_every_steps",] == 30
    assert found["vargpt_training_gpu_peak_bytes",] == 71.5e9
    assert found["vargpt_training_data_seconds",] == 0.5
    assert str(found["vargpt_training_loss", "text"]) == "nan"


def test_a_metric_without_a_series_of_its_own_is_read_by_its_name_in_mlflow(tmp_path, port):
    exporter = MetricsExporter("backbones", tmp_path)
    exporter.serve(port)

    exporter.log(5, {"vision_tower/digit": 1.5})

    assert read(port)["vargpt_training_other", "vision_tower/digit"] == 1.5


def test_a_node_exports_how_long_its_own_processes_computed(tmp_path, port):
    environment = {"VARGPT_METRICS_PORT": str(port), "RANK": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    tracker = open_tracker(None, "", tmp_path, False, exporter=metrics_exporter("s", tmp_path, environment))

    tracker.processes([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    tracker.processes([])

    found = {key[1]: value for key, value in read(port).items() if key[0].endswith("_compute_seconds")}
    assert found == {"2": 3.0, "3": 4.0}


def test_the_newest_checkpoint_is_the_one_that_was_committed_last(tmp_path):
    exporter = MetricsExporter("stage1", tmp_path)
    assert exporter.newest_checkpoint() == 0
    step = tmp_path / "0123" / "step_00000010"
    step.mkdir(parents=True)
    assert exporter.newest_checkpoint() == 0, "not committed yet"

    (step / "COMPLETE").touch()

    assert exporter.newest_checkpoint() == (step / "COMPLETE").stat().st_mtime


def test_a_port_that_is_taken_does_not_end_the_training(tmp_path, port, caplog):
    MetricsExporter("stage1", tmp_path).serve(port)

    MetricsExporter("stage1", tmp_path).serve(port)

    assert str(port) in caplog.text


@pytest.mark.parametrize("environment", [{}, {"VARGPT_METRICS_PORT": "1", "LOCAL_RANK": "1"}])
def test_only_the_first_process_of_a_node_with_a_port_is_read(tmp_path, environment):
    assert metrics_exporter("stage1", tmp_path, environment) is None


def test_a_port_that_is_no_number_is_the_users_mistake(tmp_path):
    with pytest.raises(ValueError, match="VARGPT_METRICS_PORT must be a port"):
        metrics_exporter("stage1", tmp_path, {"VARGPT_METRICS_PORT": "x"})
