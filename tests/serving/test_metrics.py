"""Metrics: they move with real requests, in a registry of each engine, and Prometheus can read them."""

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.loaded_model import LoadedModel
from serving.metrics import EngineMetrics, without_own
from tests.serving.parts import (
    CHAT,
    DRAW,
    SHORT,
    RecordingListener,
    asking,
    held,
    http_client,
    job_options,
    prompt,
    running,
)

HISTOGRAMS = [
    *("queue_wait_seconds", "time_to_first_token_seconds", "time_between_tokens_seconds", "scale_seconds"),
    *("reply_seconds", "batch_seconds", "batch_size"),
]


def values(model: LoadedModel) -> dict[str, float]:
    """Every sample of an engine by its name and labels, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(model.engine.metrics.render()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_metrics_move_with_a_request(loaded_model: LoadedModel, wait_until):
    with running(loaded_model, loaded_model.engine.generate) as model, http_client(model) as http:
        spoken = http.post(CHAT, json=asking(max_tokens=8, image={"max_images": 0})).json()
        drawn = http.post(DRAW, json={"prompt": "a red seven", "seed": 3}).json()
        # Replies are on their way before the engine has put their request away.
        wait_until(lambda: values(model)["vargpt_running"] == 0)
        found = values(model)

    for name in HISTOGRAMS:
        assert found[f"vargpt_{name}_count"] > 0, name
        assert found[f"vargpt_{name}_sum"] >= 0, name
        assert found[f"vargpt_{name}_bucket{{le=+Inf}}"] == found[f"vargpt_{name}_count"], name
    num_scales = found["vargpt_scale_seconds_count"]
    num_tokens = spoken["usage"]["completion_tokens"] + drawn["usage"]["output_tokens"] - 30
    assert num_scales == 4
    assert found["vargpt_images_total"] == 1
    assert found["vargpt_text_tokens_total"] >= num_tokens
    assert found["vargpt_choices_total{outcome=answered}"] == found["vargpt_reply_seconds_count"] >= 2
    assert found[f"vargpt_requests_total{{outcome=answered,route={CHAT}}}"] == 1
    assert found[f"vargpt_requests_total{{outcome=answered,route={DRAW}}}"] == 1
    assert (found["vargpt_queue_length"], found["vargpt_running"]) == (0, 0)


def test_gauges_say_how_many_wait_and_run(loaded_model: LoadedModel, wait_until):
    with held(loaded_model, batch_size=2) as (generate, model):
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.batches)
        model.engine.submit([prompt(model)] * 3, RecordingListener(), job_options(model))
        found = values(model)

    assert (found["vargpt_queue_length"], found["vargpt_running"]) == (3, 1)


def test_refusals_are_counted_by_their_reason(loaded_model: LoadedModel):
    with held(loaded_model) as (generate, model), http_client(model) as http:
        generate.release()
        http.post(CHAT, json={**SHORT, "n": 99})
        model.engine.drain(10)
        http.post(CHAT, json=SHORT)
        found = values(model)

    assert {name: value for name, value in found.items() if name.startswith("vargpt_refused_total")} == {
        "vargpt_refused_total{reason=shutting_down}": 1
    }
    assert found[f"vargpt_requests_total{{outcome=invalid_value,route={CHAT}}}"] == 1


def test_times_are_right_within_their_order(loaded_model: LoadedModel):
    with running(loaded_model, loaded_model.engine.generate) as model, http_client(model) as http:
        http.post(CHAT, json=asking(max_tokens=8, image={"max_images": 0}))
        found = values(model)

    first, whole = found["vargpt_time_to_first_token_seconds_sum"], found["vargpt_reply_seconds_sum"]
    assert found["vargpt_queue_wait_seconds_sum"] < first < whole < 60
    assert first + found["vargpt_time_between_tokens_seconds_sum"] <= whole


def test_each_engine_has_numbers_of_its_own(loaded_model: LoadedModel):
    with running(loaded_model, loaded_model.engine.generate) as one, http_client(one) as http:
        http.post(CHAT, json=SHORT)
        with running(loaded_model, loaded_model.engine.generate) as other:
            assert values(one)["vargpt_choices_total{outcome=answered}"] == 1
            assert "vargpt_choices_total{outcome=answered}" not in values(other)


@pytest.mark.parametrize("own_first", [True, False])
def test_what_a_server_collects_beside_ours_stays_and_ours_goes(own_first: bool):
    registry = CollectorRegistry()
    Counter("server_requests", "of the server", registry=registry).inc()
    theirs, ours = generate_latest(registry).decode(), EngineMetrics().render()

    assert without_own(ours + theirs if own_first else theirs + ours) == theirs
