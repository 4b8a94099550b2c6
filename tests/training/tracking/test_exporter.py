"""Laws of the exporter: Prometheus reads what MLflow is told, and how old the newest checkpoint is."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from training.launching.stage_process import metrics_exporter
from training.tracking.exporter import MetricsExporter
from training.tracking.tracker import open_tracker


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


@pytest.mark.parametrize("is_rank_zero", [True, False])
def test_prometheus_reads_what_a_tracker_is_told_on_every_rank(tmp_path, port, is_rank_zero):
    exporter = MetricsExporter("stage1", tmp_path)
    exporter.serve(port)
    tracker = open_tracker(None, "vargpt", tmp_path / "spool", is_rank_zero, exporter=exporter)
    tracker.start("stage1", {"steps": 60, "checkpoint_every": 30}, {})

    tracker.log(5, **{"loss/text": 2.5, "tokens_per_step": 100, "data_seconds": 0.25})
    tracker.log(10, **{"loss/text": float("nan"), "tokens_per_step": 100, "data_seconds": 0.25})
    found = read(port)
    tracker.finish()

    assert found["vargpt_training_step",] == 10
    assert found["vargpt_training_steps",] == 60
    assert found["vargpt_training_checkpoint_every_steps",] == 30
    assert found["vargpt_training_tokens_total",] == 200
    assert found["vargpt_training_data_seconds",] == 0.25
    assert str(found["vargpt_training_loss", "text"]) == "nan"


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
