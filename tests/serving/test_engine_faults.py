"""The engine when the model fails: who gets the error, and when only a restart helps."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from model.errors import UserError
from serving.device_errors import is_fatal
from serving.engine import BrokenError
from serving.jobs import Finished
from serving.loaded_model import LoadedModel
from tests.serving.parts import (
    WORD,
    HeldGenerate,
    RecordingListener,
    ScriptedGenerate,
    held,
    job_options,
    prompt,
    running,
)


class FailingGenerate:
    """A `generate` that raises given errors, one after another, and answers where there is None."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)
        self._answer = ScriptedGenerate([WORD])

    def __call__(self, requests, **callbacks):
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error
        return self._answer(requests, **callbacks)


def run_through(model: LoadedModel, number: int, wait_until: Callable) -> list[object]:
    """The ends of so many jobs, one after another, as long as the engine takes them."""
    ends = []
    for _ in range(number):
        listener = RecordingListener()
        try:
            model.engine.submit([prompt(model)], listener, job_options(model))
        except BrokenError as error:
            ends.append(error)
            continue
        wait_until(listener.last)
        ends.append(listener.last())
    return ends


def test_faults_in_a_row_end_the_engine_and_faults_between_answers_do_not(
    loaded_model: LoadedModel, wait_until: Callable
):
    fault = RuntimeError("a fault")
    with running(loaded_model, FailingGenerate(fault, None, fault, None), faults_in_a_row=2) as model:
        run_through(model, 4, wait_until)
        assert model.engine.is_alive

    with running(loaded_model, FailingGenerate(fault, fault), faults_in_a_row=2) as model:
        ends = run_through(model, 3, wait_until)
        wait_until(lambda: not model.engine.is_alive)
        assert not model.engine.is_ready
        assert isinstance(ends[2], BrokenError)


def test_mistakes_of_users_are_no_faults(loaded_model: LoadedModel, wait_until: Callable):
    with running(loaded_model, FailingGenerate(*[UserError("too long")] * 9), faults_in_a_row=2) as model:
        run_through(model, 9, wait_until)

        assert model.engine.is_ready


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), False),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (RuntimeError("shapes do not match"), False),
        (IndexError("index out of range"), False),
    ],
)
def test_an_error_of_the_device_is_fatal_and_no_other(error: Exception, fatal: bool):
    assert is_fatal(error) is fatal


def test_a_fatal_error_ends_the_engine_at_once_and_frees_who_waits(
    loaded_model: LoadedModel, wait_until: Callable
):
    fatal = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    generate = HeldGenerate(FailingGenerate(fatal))
    with running(loaded_model, generate, is_fatal, batch_size=1) as model:
        failing, waiting = RecordingListener(), RecordingListener()
        model.engine.submit([prompt(model)], failing, job_options(model))
        model.engine.submit([prompt(model)], waiting, job_options(model))

        generate.release()
        wait_until(lambda: failing.last() and waiting.last())

        assert failing.last() is fatal
        assert isinstance(waiting.last(), BrokenError)
        assert not model.engine.is_alive
        assert not model.engine.is_ready
        with pytest.raises(BrokenError):
            model.engine.check_room()


def test_an_engine_that_is_silent_for_too_long_counts_as_dead(
    loaded_model: LoadedModel, wait_until: Callable
):
    with held(loaded_model, stall_seconds=0.1) as (generate, model):
        assert model.engine.is_alive
        model.engine.submit([prompt(model)], listener := RecordingListener(), job_options(model))

        wait_until(lambda: not model.engine.is_alive)

        generate.release()
        wait_until(listener.last)
        assert model.engine.is_alive


def test_one_faulty_request_does_not_harm_its_batch(loaded_model: LoadedModel, wait_until: Callable):
    faulty = dataclasses.replace(prompt(loaded_model), input_ids=prompt(loaded_model).input_ids + 1_000_000)
    listeners = [RecordingListener() for _ in range(3)]
    with held(loaded_model) as (generate, model):
        model.engine.submit([prompt(model)], RecordingListener(), job_options(model))
        wait_until(lambda: generate.batches)
        for listener, request in zip(listeners, (prompt(model), faulty, prompt(model)), strict=True):
            model.engine.submit([request], listener, job_options(model))
        generate.release()
        wait_until(lambda: all(listener.last() for listener in listeners))

        assert isinstance(listeners[1].last(), Exception)
        assert isinstance(listeners[0].last(), Finished)
        assert isinstance(listeners[2].last(), Finished)
        assert model.engine.is_alive
