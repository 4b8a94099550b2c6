"""The service as it runs: a BentoML process over a published model."""

import concurrent.futures
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import client
from serving.client import Server, is_ready, serve_command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "Describe."}], "max_tokens": 400, "seed": 1}
SHORT = {**LONG, "max_tokens": 5}


# The service with a device that fails for good at the first request after loading.
BROKEN = """
import threading, time
import torch
from serving.service import SERVED_MODEL, VargptService

def break_device():
    while SERVED_MODEL.loaded is None:
        time.sleep(0.05)
    def fail(requests, **callbacks):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    SERVED_MODEL.loaded.engine.generate = fail

threading.Thread(target=break_device, daemon=True).start()
"""
# What BentoML serves beside our routes, and what nobody does.
OTHER_PATHS = ["/docs.json", "/schema.json", "/livez", "/readyz", "/healthz", "/nowhere", "/index.html"]


def metric(url: str, name: str, **labels: str) -> float:
    """The value of a counter or gauge, 0 where it has not been counted yet."""
    samples = [
        sample
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    assert len(samples) <= 1
    return samples[0].value if samples else 0


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[Server]:
    with Server(published) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


def test_the_service_is_ready_after_its_model_has_answered_once(url: str):
    assert is_ready(url)
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert httpx.get(f"{url}/livez").status_code == 200
    assert metric(url, "vargpt_choices_total", outcome="answered") >= 2
    assert metric(url, "vargpt_images_total") >= 1


def test_text_and_pictures_are_answered_over_the_wire(url: str):
    drawn = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a red seven", "seed": 3}, timeout=60)
    spoken = httpx.post(url + CHAT, json=SHORT, timeout=60)

    assert (drawn.status_code, spoken.status_code) == (200, 200)
    assert drawn.headers["x-model-version"] == spoken.headers["x-model-version"] == "7"
    assert len(drawn.json()["data"]) == 1


def test_an_unknown_route_has_our_shape_and_not_the_servers(url: str):
    response = httpx.get(f"{url}/v1/nowhere")

    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_the_page_is_ours_and_nothing_reports_to_anybody(url: str):
    page = httpx.get(f"{url}/")

    assert "vargpt" in page.text and "curl" in page.text
    assert "BentoML" not in page.text
    for path in ["/", "/v1", "/v1/openapi.json", "/v1/models", "/metrics", *OTHER_PATHS]:
        assert "googletagmanager" not in httpx.get(url + path).text
        assert "googletagmanager" not in httpx.post(url + path).text


def test_metrics_can_be_read_and_stand_there_once(url: str):
    names = [family.name for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)]

    assert len(names) == len(set(names))
    assert "vargpt_time_to_first_token_seconds" in names
    assert any(name.startswith("bentoml") for name in names)


def test_the_log_has_one_json_line_for_a_request(server: Server):
    headers = {"X-Request-Id": "to-be-found"}
    httpx.post(server.url + CHAT, json=SHORT, headers=headers, timeout=60)

    # The line is written once the reply has been sent.
    deadline = time.monotonic() + 10
    while not (lines := [line for line in server.log().splitlines() if "to-be-found" in line]):
        assert time.monotonic() < deadline, server.log()[-3000:]
        time.sleep(0.05)

    assert len(lines) == 1
    assert json.loads(lines[0])["outcome"] == "answered"


def test_many_clients_share_batches_and_each_gets_its_own_answer(url: str):
    bodies = [{"prompt": "a red seven", "seed": seed} for seed in range(24)]

    def draw(body: dict) -> bytes:
        return httpx.post(f"{url}/v1/images/generations", json=body, timeout=60).json()["data"][0]["b64_json"]

    alone = [draw(body) for body in bodies[:3]]
    before = metric(url, "vargpt_batch_size_count")
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(draw, bodies))

    assert together[:3] == alone
    assert len(set(together)) == len(bodies)
    assert metric(url, "vargpt_batch_size_count") - before < len(bodies)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(url: str, stream: bool, wait_until: Callable):
    def num_cancelled() -> float:
        return metric(url, "vargpt_choices_total", outcome="cancelled")

    before = num_cancelled()

    with pytest.raises(httpx.TimeoutException), httpx.Client(timeout=0.3) as client:
        if stream:
            with client.stream("POST", url + CHAT, json={**LONG, "stream": True, "n": 8}) as response:
                for _ in response.iter_lines():
                    raise httpx.ReadTimeout("enough")
        client.post(url + CHAT, json={**LONG, "n": 8})

    wait_until(lambda: num_cancelled() > before and metric(url, "vargpt_running") == 0)


def test_a_service_told_to_stop_finishes_what_it_has_begun(published: Path):
    with Server(published) as running, httpx.Client(timeout=60) as client:
        body = {**LONG, "stream": True}
        with client.stream("POST", running.url + CHAT, json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        code = running.process.wait(60)

    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    assert rest[-1] == "data: [DONE]"
    assert code in (0, -signal.SIGTERM)


def test_a_broken_device_fails_both_probes(
    published: Path, tmp_path: Path, wait_until: Callable, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    replaced = {"serving.service:VargptService": "broken:VargptService", str(ROOT): str(tmp_path)}

    def serve_broken(*arguments: object) -> list[str]:
        return [replaced.get(word, word) for word in serve_command(*arguments)]

    monkeypatch.setattr(client, "serve_command", serve_broken)
    with Server(published) as running:
        assert httpx.get(f"{running.url}/livez").status_code == 200
        wait_until(lambda: httpx.post(running.url + CHAT, json=SHORT, timeout=60).status_code == 500)

        wait_until(lambda: httpx.get(f"{running.url}/livez").status_code == 503)

        assert httpx.get(f"{running.url}/readyz").status_code == 503
        assert httpx.post(running.url + CHAT, json=SHORT).json()["error"]["code"] == "model_broken"


def test_damaged_weights_are_named_and_never_served(published: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(published, folder)
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    with pytest.raises(ValueError, match=weights.name), Server(folder):
        pass


def test_the_http_api_starts_without_waiting_for_torch_or_mlflow():
    script = "import sys, serving.service; print(sorted({'torch', 'mlflow'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_model_is_loaded_without_mlflow(published: Path):
    script = (
        "import sys; from pathlib import Path; from serving.config import Limits;"
        "from serving.loading import load_model_for_serving;"
        f"load_model_for_serving(Path({str(published)!r}), Limits(), device='cpu');"
        "print('mlflow' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
