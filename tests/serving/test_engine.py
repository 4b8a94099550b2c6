"""The engine: one thread, a bounded queue, batches, and nobody is forgotten."""

import time
from collections.abc import Callable

import pytest

from serving.engine import ClosedError, QueueFullError
from serving.jobs import Finished
from serving.loaded_model import LoadedModel
from tests.serving.parts import (
    WORD,
    RecordingListener,
    ScriptedGenerate,
    held,
    job_options,
    prompt,
    running,
)


def test_what_waits_is_answered_in_one_batch(loaded_model: LoadedModel, wait_until: Callable):
    listeners = [RecordingListener() for _ in range(5)]
    with held(loaded_model, batch_size=3) as (generate, model):
        model.engine.submit([prompt(model)], listeners[0], job_options(model))
        wait_until(lambda: generate.batches)
        for listener in listeners[1:]:
            model.engine.submit([prompt(model)], listener, job_options(model))

        generate.release()
        wait_until(lambda: all(listener.last() for listener in listeners))

    assert [len(batch) for batch in generate.batches] == [1, 3, 1]


def test_a_reply_does_not_depend_on_who_else_is_in_the_batch(loaded_model: LoadedModel, wait_until: Callable):
    requests = [prompt(loaded_model, seed=seed, force_image=True) for seed in (1, 2, 3)]
    alone, together = RecordingListener(), RecordingListener()

    loaded_model.engine.submit([requests[1]], alone, job_options(loaded_model))
    wait_until(alone.last)
    loaded_model.engine.submit(requests, together, job_options(loaded_model))
    wait_until(lambda: all(together.last(index) for index in range(3)))

    images = [together.last(index).reply.images[0] for index in range(3)]
    assert alone.last().reply.token_ids == together.last(1).reply.token_ids
    assert (alone.last().reply.images[0] == images[1]).all()
    assert not (images[0] == images[1]).all()


def test_events_come_in_order_and_the_reply_last(loaded_model: LoadedModel, wait_until: Callable):
    listener = RecordingListener()
    request = prompt(loaded_model, force_image=True)
    loaded_model.engine.submit([request], listener, job_options(loaded_model))
    wait_until(listener.last)

    events = [update for _, update in listener.updates[:-1]]
    reply = listener.last().reply
    assert isinstance(listener.updates[-1][1], Finished)
    assert [event.token_id for event in events if event.type == "token"] == reply.token_ids
    assert (next(event.image for event in events if event.type == "image") == reply.images[0]).all()
    assert [event.scale for event in events if event.type == "scale"] == sorted(
        event.scale for event in events if event.type == "scale"
    )


def test_a_full_queue_refuses_all_choices_of_a_job_or_none(loaded_model: LoadedModel, wait_until: Callable):
    with held(loaded_model, queue_length=3) as (generate, model):
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.batches)
        model.engine.submit([prompt(model)] * 2, RecordingListener(), job_options(model))

        with pytest.raises(QueueFullError) as caught:
            model.engine.submit([prompt(model)] * 2, RecordingListener(), job_options(model))
        assert caught.value.retry_after >= 1
        assert model.engine.num_waiting == 2
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        with pytest.raises(QueueFullError):
            model.engine.check_room()


def test_a_cancelled_job_leaves_the_queue_and_makes_room(loaded_model: LoadedModel, wait_until: Callable):
    with held(loaded_model, queue_length=1) as (generate, model):
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.batches)
        listener = RecordingListener()
        job = model.engine.submit([prompt(model)], listener, job_options(model))

        job.cancel()
        model.engine.submit([prompt(model)], second := RecordingListener(), job_options(model))
        generate.release()
        wait_until(second.last)

    assert listener.updates == []
    assert len(generate.batches) == 2


def test_a_running_job_takes_no_further_step_when_cancelled(loaded_model: LoadedModel, wait_until: Callable):
    generate = ScriptedGenerate([WORD] * 10_000, step_seconds=0.001)
    with running(loaded_model, generate) as model:
        job = model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.num_steps >= 3)

        job.cancel()
        num_steps = generate.num_steps
        wait_until(lambda: model.engine.num_running == 0)

        assert generate.num_steps <= num_steps + 1
        assert outcomes(model) == {"cancelled": 1}


def test_the_model_ends_a_cancelled_reply_early(loaded_model: LoadedModel, wait_until: Callable):
    listener = RecordingListener()
    with held(loaded_model) as (generate, model):
        generate.release()
        request = prompt(model, max_new_tokens=400, text_temperature=1.0, max_images=0)
        job = model.engine.submit([request], listener, job_options(model))
        wait_until(lambda: len(listener.updates) >= 3)

        job.cancel()
        wait_until(lambda: generate.replies)

        assert generate.replies[0].finish_reason == "cancelled"
        assert listener.last() is None


def test_a_cancelled_neighbour_leaves_the_batch_and_is_not_noticed(
    loaded_model: LoadedModel, wait_until: Callable
):
    request = prompt(loaded_model, max_new_tokens=60, text_temperature=1.0, max_images=0)
    alone, cancelled, staying = RecordingListener(), RecordingListener(), RecordingListener()
    loaded_model.engine.submit([request], alone, job_options(loaded_model))
    wait_until(alone.last)
    with held(loaded_model) as (generate, model):
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.batches)
        # The neighbour goes on for longer, unless its cancellation is heeded.
        neighbour = prompt(model, "What is this?", max_new_tokens=400, text_temperature=1.0, max_images=0)
        job = model.engine.submit([neighbour], cancelled, job_options(model))
        model.engine.submit([request], staying, job_options(model))
        generate.release()
        wait_until(lambda: len(cancelled.updates) >= 3)
        job.cancel()
        wait_until(staying.last)

        assert staying.last().reply.token_ids == alone.last().reply.token_ids
        assert generate.replies[-2].finish_reason == "cancelled"
        assert len(generate.replies[-2].token_ids) < len(generate.replies[-1].token_ids)


def test_a_job_past_its_deadline_is_given_up(loaded_model: LoadedModel, wait_until: Callable):
    with held(loaded_model, deadline_seconds=0.2) as (generate, model):
        first, waiting = RecordingListener(), RecordingListener()
        model.engine.submit([prompt(model)], first, job_options(model))
        wait_until(lambda: generate.batches)
        model.engine.submit([prompt(model)], waiting, job_options(model))
        time.sleep(0.3)
        generate.release()
        wait_until(lambda: first.last() and waiting.last())

        assert isinstance(first.last(), TimeoutError)
        assert isinstance(waiting.last(), TimeoutError)
        assert len(generate.batches) == 1
        assert generate.replies[0].finish_reason == "cancelled"
        assert len(generate.replies[0].token_ids) <= 1


def test_a_drained_engine_finishes_what_it_has_and_takes_no_more(loaded_model: LoadedModel):
    with held(loaded_model) as (generate, model):
        listeners = [RecordingListener() for _ in range(4)]
        for listener in listeners:
            model.engine.submit([prompt(model)], listener, job_options(model))
        generate.release()

        assert model.engine.drain(30)

        assert all(isinstance(listener.last(), Finished) for listener in listeners)
        assert not model.engine.is_ready
        with pytest.raises(ClosedError):
            model.engine.submit([prompt(model)], RecordingListener(), job_options(model))


def test_a_drain_that_takes_too_long_cancels_the_rest(loaded_model: LoadedModel, wait_until: Callable):
    generate = ScriptedGenerate([WORD] * 1_000_000, step_seconds=0.001)
    with running(loaded_model, generate) as model:
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.num_steps)

        assert not model.engine.drain(0.5)

        assert generate.num_steps < 100_000
        assert outcomes(model) == {"cancelled": 1}


def test_who_wants_pictures_only_is_done_when_they_are_drawn(loaded_model: LoadedModel, wait_until: Callable):
    listener = RecordingListener()
    request = prompt(loaded_model, force_image=True, max_images=1, max_new_tokens=300)

    loaded_model.engine.submit([request], listener, job_options(loaded_model, draws_only=True))
    wait_until(listener.last)

    assert len(listener.last().reply.images) == 1
    assert len(listener.last().reply.token_ids) < 10


def test_a_stop_check_ends_a_choice_at_its_token(loaded_model: LoadedModel, wait_until: Callable):
    listener = RecordingListener()
    generate = ScriptedGenerate([WORD, WORD + 1, WORD + 2, WORD + 3])
    with running(loaded_model, generate) as model:
        options = job_options(model, is_stop=lambda token_ids: token_ids[-1] == WORD + 1)
        model.engine.submit([prompt(model)], listener, options)
        wait_until(listener.last)

    assert listener.last().reply.token_ids == [WORD, WORD + 1]
    assert listener.last().reply.finish_reason == "stop"


def outcomes(model: LoadedModel) -> dict[str, float]:
    """How many choices have ended in which way."""
    [family] = [f for f in model.engine.metrics.registry.collect() if f.name == "vargpt_choices"]
    return {
        sample.labels["outcome"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }
