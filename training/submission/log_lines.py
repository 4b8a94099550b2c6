"""New lines of pods' logs, asked for again and again: a stream breaks with the API server, a question is
repeated.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any

from training.submission.api import NOT_FOUND, REQUEST_SECONDS, ApiServer
from training.submission.pod_reasons import container_statuses

# Lines of one container and second that can be asked for at once.
OVERLAP_SECONDS = 3
_STAMPED = re.compile(r"(?P<stamp>\d{4}-\d\d-\d\dT\S+) (?P<line>.*)")


@dataclass
class _ReadPosition:
    """How far the log of one container has been read."""

    asked: float | None = None
    stamp: str = ""
    seen: set[str] = field(default_factory=set)


class LogReader:
    """Reads what the containers of pods have said since it was asked last.

    Args:
        tail: How many lines of what was said before the first question.
    """

    def __init__(self, server: ApiServer, tail: int | None = None) -> None:
        self.server, self.tail = server, tail
        self._positions: dict[tuple[str, str], _ReadPosition] = {}

    def new_lines(self, pod: Any) -> list[str]:
        """The lines of all containers of a pod that have begun, in their order."""
        lines = []
        for status in container_statuses(pod):
            if status.state and (status.state.running or status.state.terminated):
                lines += self._new_lines(pod, status.name)
        return lines

    def _new_lines(self, pod: Any, container: str) -> list[str]:
        from kubernetes.client import ApiException

        position = self._positions.setdefault((pod.metadata.uid, container), _ReadPosition())
        options: dict[str, Any] = {"tail_lines": self.tail} if self.tail is not None else {}
        if position.asked is not None:
            options = {"since_seconds": int(time.monotonic() - position.asked) + OVERLAP_SECONDS}

        def read() -> bytes:
            # As bytes: the client would hand out the text of Python's bytes, b'...'.
            return self.server.core.read_namespaced_pod_log(
                pod.metadata.name,
                self.server.namespace,
                container=container,
                timestamps=True,
                _preload_content=False,
                _request_timeout=REQUEST_SECONDS,
                **options,
            ).data

        now = time.monotonic()
        try:
            text = self.server.ask(read)
        except ApiException as error:
            # The pod has gone, or its container is not there yet.
            if error.status in (400, NOT_FOUND):
                return []
            raise
        position.asked = now
        return _unseen(text.decode("utf-8", "replace"), position)


def _unseen(text: str, position: _ReadPosition) -> list[str]:
    """The lines after the last one that was read; lines of one moment are told apart by their text."""
    fresh = []
    for line in text.splitlines():
        match = _STAMPED.fullmatch(line)
        if match is None:
            continue
        stamp = match["stamp"]
        if stamp < position.stamp or line in position.seen:
            continue
        if stamp > position.stamp:
            position.stamp, position.seen = stamp, set()
        position.seen.add(line)
        fresh.append(match["line"])
    return fresh
