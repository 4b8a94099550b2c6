"""The engine: one thread, a bounded queue, batches, and nobody is forgotten."""

import dataclasses
import time
from collections.abc import Callable

import pytest

from model.generation.generate import Request
from model.generation.sampling import SamplingParams
from serving.engine import ClosedError, QueueFullError
from serving.jobs import Finished
from serving.loaded_model import LoadedModel
from tests.serving.parts import RecordingListener, gated


def prompt(backend: LoadedModel, text: str = "Draw a red seven on white.", **params: object) -> Request:
    force_image = bool(params.pop("force_image", False))
    wanted = SamplingParams(**{"max_new_tokens": 8, **params})
    return backend.prompts.write([{"role": "user", "content": text}], wanted, force_image=force_image)


def test_what_waits_is_answered_in_one_batch(backend: LoadedModel, wait_until: Callable):
    ears = [RecordingListener() for _ in range(5)]
    with gated(backend, batch_size=3) as (gate, held):
        held.engine.submit([prompt(held)], ears[0])
        wait_until(lambda: gate.batches)
        for ear in ears[1:]:
            held.engine.submit([prompt(held)], ear)

        gate.open()
        wait_until(lambda: all(ear.last() for ear in ears))

    assert [len(batch) for batch in gate.batches] == [1, 3, 1]


def test_a_reply_does_not_depend_on_who_else_is_in_the_batch(backend: LoadedModel, wait_until: Callable):
    requests = [prompt(backend, seed=seed, force_image=True) for seed in (1, 2, 3)]
    alone, together = RecordingListener(), RecordingListener()

    backend.engine.submit([requests[1]], alone)
    wait_until(alone.last)
    backend.engine.submit(requests, together)
    wait_until(lambda: all(together.last(index) for index in range(3)))

    images = [together.last(index).reply.images[0] for index in range(3)]
    assert alone.last().reply.token_ids == together.last(1).reply.token_ids
    assert (alone.last().reply.images[0] == images[1]).all()
    assert not (images[0] == images[1]).all()


def test_events_come_in_order_and_the_reply_last(backend: LoadedModel, wait_until: Callable):
    ear = RecordingListener()
    backend.engine.submit([prompt(backend, force_image=True)], ear)
    wait_until(ear.last)

    events = [updates for _, updates in ear.updates[:-1]]
    reply = ear.last().reply
    assert isinstance(ear.updates[-1][1], Finished)
    assert [event.token_id for event in events if event.type == "token"] == reply.token_ids
    assert (next(event.image for event in events if event.type == "image") == reply.images[0]).all()
    assert [event.scale for event in events if event.type == "scale"] == sorted(
        event.scale for event in events if event.type == "scale"
    )


def test_a_full_queue_refuses_all_choices_of_a_job_or_none(backend: LoadedModel, wait_until: Callable):
    with gated(backend, queue_length=3) as (gate, held):
        held.engine.submit([prompt(held)], RecordingListener())
        wait_until(lambda: gate.batches)
        held.engine.submit([prompt(held)] * 2, RecordingListener())

        with pytest.raises(QueueFullError) as caught:
            held.engine.submit([prompt(held)] * 2, RecordingListener())
        assert caught.value.retry_after >= 1
        assert held.engine.num_waiting == 2
        held.engine.submit([prompt(held)], RecordingListener())
        with pytest.raises(QueueFullError):
            held.engine.check_room()


def test_a_cancelled_job_leaves_the_queue_and_makes_room(backend: LoadedModel, wait_until: Callable):
    with gated(backend, queue_length=1) as (gate, held):
        held.engine.submit([prompt(held)], RecordingListener())
        wait_until(lambda: gate.batches)
        ear = RecordingListener()
        job = held.engine.submit([prompt(held)], ear)

        job.cancel()
        held.engine.submit([prompt(held)], second := RecordingListener())
        gate.open()
        wait_until(second.last)

    assert ear.updates == []
    assert len(gate.batches) == 2


def test_a_running_job_stops_at_the_next_step_when_cancelled(backend: LoadedModel, wait_until: Callable):
    ear = RecordingListener()
    job = backend.engine.submit([prompt(backend, max_new_tokens=400)], ear)
    wait_until(lambda: len(ear.updates) >= 3)

    job.cancel()
    heard = len(ear.updates)
    wait_until(lambda: backend.engine.num_running == 0)

    assert heard <= len(ear.updates) <= heard + 1
    assert ear.last() is None


def test_a_neighbour_in_the_batch_does_not_notice_a_cancellation(backend: LoadedModel, wait_until: Callable):
    request = prompt(backend, max_new_tokens=60)
    alone, cancelled, staying = RecordingListener(), RecordingListener(), RecordingListener()
    backend.engine.submit([request], alone)
    wait_until(alone.last)
    with gated(backend) as (gate, held):
        held.engine.submit([prompt(held)], RecordingListener())
        wait_until(lambda: gate.batches)
        job = held.engine.submit([prompt(held, "What is this?", max_new_tokens=60)], cancelled)
        held.engine.submit([request], staying)
        gate.open()
        wait_until(lambda: len(cancelled.updates) >= 3)
        job.cancel()
        wait_until(staying.last)

    assert staying.last().reply.token_ids == alone.last().reply.token_ids


def test_a_job_past_its_deadline_is_given_up(backend: LoadedModel, wait_until: Callable):
    with gated(backend, deadline_seconds=0.2) as (gate, held):
        running, waiting = RecordingListener(), RecordingListener()
        held.engine.submit([prompt(held)], running)
        wait_until(lambda: gate.batches)
        held.engine.submit([prompt(held)], waiting)
        time.sleep(0.3)
        gate.open()
        wait_until(lambda: running.last() and waiting.last())

        assert isinstance(running.last(), TimeoutError)
        assert isinstance(waiting.last(), TimeoutError)
        assert len(gate.batches) == 1


def test_one_faulty_request_does_not_harm_its_batch(backend: LoadedModel, wait_until: Callable):
    faulty = dataclasses.replace(prompt(backend), input_ids=prompt(backend).input_ids + 1_000_000)
    ears = [RecordingListener() for _ in range(3)]
    with gated(backend) as (gate, held):
        held.engine.submit([prompt(held)], RecordingListener())
        wait_until(lambda: gate.batches)
        for ear, request in zip(ears, (prompt(held), faulty, prompt(held)), strict=True):
            held.engine.submit([request], ear)
        gate.open()
        wait_until(lambda: all(ear.last() for ear in ears))

        assert isinstance(ears[1].last(), Exception)
        assert isinstance(ears[0].last(), Finished)
        assert isinstance(ears[2].last(), Finished)
        assert held.engine.alive


def test_a_drained_engine_finishes_what_it_has_and_takes_no_more(backend: LoadedModel, wait_until: Callable):
    with gated(backend) as (gate, held):
        ears = [RecordingListener() for _ in range(4)]
        for ear in ears:
            held.engine.submit([prompt(held)], ear)
        gate.open()

        assert held.engine.drain(30)

        assert all(isinstance(ear.last(), Finished) for ear in ears)
        with pytest.raises(ClosedError):
            held.engine.submit([prompt(held)], RecordingListener())


def test_a_drain_that_takes_too_long_cancels_the_rest(backend: LoadedModel, wait_until: Callable):
    with gated(backend) as (gate, held):
        ear = RecordingListener()
        held.engine.submit([prompt(held)], ear)
        wait_until(lambda: gate.batches)

        assert not held.engine.drain(0.1)


def test_who_wants_pictures_only_is_done_when_they_are_drawn(backend: LoadedModel, wait_until: Callable):
    ear = RecordingListener()
    request = prompt(backend, force_image=True, max_images=1, max_new_tokens=300)

    backend.engine.submit([request], ear, draws_only=True)
    wait_until(ear.last)

    assert len(ear.last().reply.images) == 1
    assert len(ear.last().reply.token_ids) < 10


def test_an_engine_that_is_silent_for_too_long_counts_as_dead(backend: LoadedModel, wait_until: Callable):
    with gated(backend, stall_seconds=0.1) as (gate, held):
        assert held.engine.alive
        held.engine.submit([prompt(held)], ear := RecordingListener())

        wait_until(lambda: not held.engine.alive)

        gate.open()
        wait_until(ear.last)
        assert held.engine.alive
