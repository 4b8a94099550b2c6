"""Laws of speed: pictures that are read count too, and MFU says what it is measured by."""

import psutil
import pytest
import torch

from model.config import preset
from tests.training.volume import ROOT
from training.params import load_params
from training.planning.gpus import GPUS
from training.stages.stage_loss import Counted
from training.stages.stage_table import stage_named
from training.stages.step_metrics import StepMetrics
from training.stages.throughput import Throughput, peak_memory

CONFIG = preset("tiny")
SECONDS = 2.0


def step_of(pictures, drawings):
    """What a step of two seconds reports."""
    targets = torch.tensor([30.0] + [drawings * side**2 for side in CONFIG.scales])
    count = Counted(targets, positions=400.0, squares=2e4, pictures=pictures, drawings=drawings)
    return StepMetrics(0, 1e-3, {}, 1.0, 100, 0, seconds=SECONDS, count=count)


@pytest.fixture
def throughput_on(monkeypatch):
    """The throughput of stage 2 on a GPU of this name, or on the CPU."""

    def make(gpu=None):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
        params = load_params(ROOT / "params.yaml", "smoke").stage2
        return Throughput(CONFIG, stage_named("stage2"), params, 1, torch.device("cuda" if gpu else "cpu"))

    return make


@pytest.mark.parametrize(
    ("pictures", "drawings", "each_second"), [(6.0, 0.0, 3.0), (6.0, 2.0, 4.0), (0.0, 2.0, 1.0)]
)
def test_pictures_a_second_are_those_read_and_those_drawn(pictures, drawings, each_second, throughput_on):
    told = throughput_on().metrics(step_of(pictures, drawings))

    assert told["pictures_per_second"] == each_second
    assert told["drawings_per_second"] == drawings / SECONDS


def test_mfu_names_its_device_and_the_peak_that_it_is_a_share_of(throughput_on):
    throughput = throughput_on("NVIDIA H100 80GB HBM3")
    told, tags = throughput.metrics(step_of(2.0, 2.0)), throughput.denominator()

    assert tags["vargpt.mfu_device"] == "NVIDIA H100 80GB HBM3"
    peak = float(tags["vargpt.mfu_peak_teraflops"])
    assert peak * 1e12 == GPUS["h100"].flops
    assert told["mfu/all"] == pytest.approx(told["teraflops/all"] / peak)


@pytest.mark.parametrize("gpu", [None, "NVIDIA H100 PCIe"])
def test_there_is_no_mfu_and_no_denominator_where_the_peak_is_not_known(gpu, throughput_on):
    throughput = throughput_on(gpu)
    told = throughput.metrics(step_of(2.0, 2.0))

    assert throughput.denominator() == {}
    assert told["teraflops/all"] > 0 and not any(name.startswith("mfu") for name in told)


def test_on_a_cpu_memory_is_the_most_that_was_resident():
    before = peak_memory(torch.device("cpu"))["peak_memory_gigabytes"]
    large = torch.ones(10_000_000 + int(before * 250e6))
    resident = psutil.Process().memory_info().rss / 1e9
    del large

    after = peak_memory(torch.device("cpu"))
    assert after.keys() == {"peak_memory_gigabytes"}
    assert before < after["peak_memory_gigabytes"]
    assert resident == pytest.approx(after["peak_memory_gigabytes"], rel=0.05)
