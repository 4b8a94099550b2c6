"""Laws of work that processes do side by side: how those that did not fail end when others did."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from model.errors import UserError
from training.engines.engine import Engine


def ends(*works):
    """What each of several processes, here threads, raises when they do this together, or None."""
    barrier, shared = threading.Barrier(len(works)), {}

    def end(rank):
        def total(values):
            shared[rank] = values
            barrier.wait(timeout=60)
            found = torch.stack(list(shared.values())).sum(0)
            barrier.wait(timeout=60)
            return found

        process = SimpleNamespace(rank=rank, world_size=len(works), total=total)
        try:
            Engine.together(process, works[rank], patience=60)
        except Exception as error:
            return type(error)
        return None

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(end, range(len(works))))


def failing(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("CUDA error")])
def test_a_disk_that_fails_on_one_process_is_no_mistake_of_the_user_on_the_others(error):
    failed, other, third = ends(failing(error), lambda: None, lambda: None)

    assert failed is type(error)
    assert other is third is OSError


def test_a_mistake_of_the_user_is_one_on_all_processes():
    assert ends(failing(UserError("wrong")), lambda: None) == [UserError, UserError]


def test_a_mistake_beside_a_failed_disk_does_not_make_it_permanent_on_the_others():
    *_, other = ends(failing(UserError("wrong")), failing(OSError(5, "I/O error")), lambda: None)

    assert other is OSError


def test_nobody_fails_where_all_is_well():
    assert ends(lambda: None, lambda: None) == [None, None]
