"""Laws of the benchmarks: they run at tiny size on the CPU, and measure what they say they measure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_training, latency
from bench.requests import random_model, text_requests, without_end_token
from bench.timing import milliseconds
from model.generation.generate import generate

ROOT = Path(__file__).parents[1]


def test_warm_up_does_not_count():
    calls = []

    duration = milliseconds(lambda: calls.append(0), repeats=5, device="cpu", warm_up=3)

    assert len(calls) == 8
    assert duration["repeats"] == 5
    assert 0 < duration["min"] <= duration["median"] <= duration["p95"]


def test_a_model_without_end_token_writes_exactly_as_many_tokens_as_requested():
    model = without_end_token(random_model("tiny", "cpu", torch.float32))

    [reply] = generate(model, text_requests(model, 1, num_tokens=24))

    assert len(reply.token_ids) == 24


@pytest.mark.parametrize(
    ("bench", "options"),
    [
        (latency, []),
        pytest.param(gpu, ["--preset", "tiny", "--device", "cpu"], marks=pytest.mark.slow),
    ],
)
def test_a_benchmark_writes_its_figures(bench, options, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        bench.main([*options, "--repeats", "2", "--out", str(tmp_path / "figures.json")])
    finally:
        torch.set_num_threads(threads)

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["device"] == "cpu"
    assert "machine.torch" in capsys.readouterr().out
    if bench is gpu:
        assert set(figures["bfloat16_error"]) >= {"vision_tower", "language_model", "visual_decoder"}
        assert all(0 < error < 0.2 for error in figures["bfloat16_error"].values())
        assert all(figures[f"draw_ms_batch_{count}"]["median"] > 0 for count in (1, 16))
        for stage in ("stage1", "stage2", "stage3"):
            step = figures[f"{stage}_512"]
            assert step["teraflops/all"] > 0 and step["planned_bytes"] > 0
            assert ("teraflops/vision_tower" in step) == (stage == "stage2")
        assert figures["tokens_per_second"]["median"] > 0
    else:
        assert figures["float32"]["tokens_per_second_batch_1"] > 0
        assert figures["bfloat16_over_float32"] > 0


@pytest.mark.parametrize(
    ("bench", "options", "said"),
    [
        (gpu, ["--device", "cuda:99"], "there is no device 'cuda:99' here"),
        (gpu, ["--device", "toaster"], "there is no device 'toaster' here"),
        (gpu, ["--device", "cpu", "--repeats", "0"], "--repeats: must be at least 1, got 0"),
        (latency, ["--repeats", "-1"], "--repeats: must be at least 1, got -1"),
        (latency, ["--threads", "0"], "--threads: must be at least 1, got 0"),
    ],
)
def test_an_option_that_cannot_be_met_is_named(bench, options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.read_arguments(options)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_stage_is_measured_before_longer_rows_and_a_fault_costs_one_figure(monkeypatch):
    def measured(name, stage, device, row_tokens, repeats, compiles):
        if stage == "stage2":
            raise ModuleNotFoundError("No module named 'peft'")
        if row_tokens > 4096:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"step_ms": 1.0}

    monkeypatch.setattr(gpu_training, "_measured", measured)

    figures = dict(gpu_training.training_speed("7b", "cpu", 1, lambda: False))

    assert list(figures)[:3] == ["stage1_4096", "stage2_4096", "stage3_4096"]
    assert figures["stage2_4096"] == {"failed": "ModuleNotFoundError: No module named 'peft'"}
    assert figures["stage3_8192"] == {"out_of_memory": True}
    assert figures["stage3_4096_compiled"] == {"step_ms": 1.0}
    assert not any("16384" in name for name in figures)


def test_a_benchmark_that_is_cut_off_has_printed_and_kept_what_it_had(monkeypatch, tmp_path, capsys):
    def cut_off(*_):
        yield "stage1_4096", {"step_ms": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "training_speed", cut_off)

    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--device", "cpu", "--only", "train", "--out", str(tmp_path / "figures.json")])

    assert 'stage1_4096 {"step_ms": 1.0}' in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["stage1_4096"] == {"step_ms": 1.0}


def test_the_image_tokenizer_of_a_benchmark_is_in_float32_as_it_is_loaded():
    model = random_model("tiny", "cpu", torch.bfloat16)

    gpu.bfloat16_errors(model)

    assert {part.dtype for part in model.image_tokenizer.parameters()} == {torch.float32}
    assert model.dtype == torch.bfloat16


def test_the_benchmark_of_a_gpu_needs_no_service_no_tracking_and_no_pipeline():
    program = "import sys, bench.gpu; sys.exit(any(name in sys.modules for name in sys.argv[1:]))"
    others = ["serving", "mlflow", "bentoml", "dvc", "deepspeed", "peft", "pyarrow", "matplotlib"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", program, *others], env=environment, cwd=ROOT, check=False)

    assert done.returncode == 0
