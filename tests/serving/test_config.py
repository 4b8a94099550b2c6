"""The limits of the service."""

import dataclasses

import pytest

from serving.config import Limits


def test_a_limit_can_be_set_from_the_environment():
    limits = Limits.from_environment(
        {"VARGPT_LIMIT_QUEUE_LENGTH": "3", "VARGPT_LIMIT_DEADLINE_SECONDS": "1.5", "A": "b"}
    )

    assert (limits.queue_length, limits.deadline_seconds) == (3, 1.5)
    assert dataclasses.replace(limits, queue_length=64, deadline_seconds=120.0) == Limits()


@pytest.mark.parametrize(
    ("name", "value"),
    [("QUEUE_LENGHT", "3"), ("QUEUE_LENGTH", "many"), ("QUEUE_LENGTH", "0"), ("DEADLINE_SECONDS", "nan")],
)
def test_a_wrong_limit_is_named(name: str, value: str):
    with pytest.raises(ValueError, match=rf"(?i){name}"):
        Limits.from_environment({f"VARGPT_LIMIT_{name}": value})
