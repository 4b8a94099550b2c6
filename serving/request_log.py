"""Request log: one JSON line for each HTTP request, without any text or picture of it."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import HTTPConnection

from serving.jobs import Job

if TYPE_CHECKING:  # types alone: the HTTP API starts without waiting for torch
    from model.generation.generate import Reply

logger = logging.getLogger(__name__)

ANSWERED = "answered"
GONE = "client_gone"
SLOW_READER = "slow_reader"
INTERNAL_ERROR = "internal_error"
OTHER_ROUTE = "other"


@dataclass
class RequestRecord:
    """What is known about one HTTP request, filled while it is answered.

    Args:
        arrived: On the monotonic clock, in seconds.
        deadline: On the same clock; the reply must be complete by then.
        outcome: "answered", or why not: the code of the error, or what the client did.
        jobs: The work that was given to the engine for it.
    """

    request_id: str
    method: str
    arrived: float
    deadline: float
    route: str = OTHER_ROUTE
    status: int | None = None
    outcome: str | None = None
    jobs: list[Job] = field(default_factory=list, repr=False)
    replies: Sequence["Reply"] = field(default=(), repr=False)

    def close(self) -> None:
        """Nobody waits for an answer any more: the engine ends what it still does for this request."""
        for job in self.jobs:
            job.cancel()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()

    def line(self) -> str:
        """The record as one JSON object."""
        return json.dumps({name: value for name, value in self._fields().items() if value is not None})

    def _fields(self) -> dict[str, Any]:
        job = self.jobs[0] if self.jobs else None
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome,
            "queue_seconds": _between(job and job.submitted, job and job.started),
            "first_token_seconds": _between(self.arrived, job and job.first_token),
            "total_seconds": _between(self.arrived, time.monotonic()),
        }
        if self.replies:
            fields["choices"] = len(self.replies)
            fields["prompt_tokens"] = self.replies[0].num_prompt_tokens
            fields["text_tokens"] = sum(len(reply.token_ids) for reply in self.replies)
            fields["image_tokens"] = sum(reply.num_image_tokens for reply in self.replies)
        return fields


def record_of(connection: HTTPConnection) -> RequestRecord:
    """The record of a request, which the middleware has put there."""
    return connection.state.record


def log_to_stdout() -> None:
    """Lets the lines appear as they are, one JSON object each, whatever the server does with other logs."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 6)
