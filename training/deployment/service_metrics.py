"""Requests, errors and latency of the pods of a Deployment, from the metrics that they export."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from training.submission.api import NOT_FOUND, REQUEST_SECONDS, ApiServer

PORT = 3000
ANSWERED = "answered"
# Outcomes of requests that the service should have answered: its errors of 500 and more, and no room.
ERRORS = frozenset(
    {
        "internal_error",
        "generation_failed",
        "model_broken",
        "model_failed",
        "model_loading",
        "deadline_exceeded",
        "queue_full",
        "too_many_requests",
        "too_many_bytes",
    }
)
_SAMPLE = re.compile(r"^(?P<name>vargpt_\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$", re.MULTILINE)
_OUTCOME = re.compile(r'outcome="([^"]*)"')


@dataclass(frozen=True)
class Traffic:
    """What was asked and answered; of two counts of the same pods, one less the other.

    Args:
        requests: That a server is answerable for, those it refused for the client's mistake left out.
        errors: Of them, without an answer.
        reply_seconds: Of all complete replies together.
    """

    requests: float = 0.0
    errors: float = 0.0
    replies: float = 0.0
    reply_seconds: float = 0.0

    def __sub__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.requests - other.requests,
            self.errors - other.errors,
            self.replies - other.replies,
            self.reply_seconds - other.reply_seconds,
        )

    @property
    def error_share(self) -> float:
        """Errors over requests; 0 without any."""
        return self.errors / self.requests if self.requests else 0.0

    @property
    def latency(self) -> float:
        """Mean seconds from a request's arrival to its complete reply; 0 without any."""
        return self.reply_seconds / self.replies if self.replies else 0.0


def traffic_of(server: ApiServer, pods: Iterable[Any]) -> Traffic:
    """What pods have been asked and have answered since they began."""
    from kubernetes.client import ApiException

    texts = []
    for pod in pods:
        try:
            texts.append(
                server.ask(
                    server.core.connect_get_namespaced_pod_proxy_with_path,
                    f"{pod.metadata.name}:{PORT}",
                    server.namespace,
                    "metrics",
                    _request_timeout=REQUEST_SECONDS,
                )
            )
        except ApiException as error:
            # It has gone meanwhile.
            if error.status != NOT_FOUND:
                raise
    return parse_traffic(texts)


def parse_traffic(texts: Iterable[str]) -> Traffic:
    """The same from the text of each pod's metrics."""
    totals: Counter[str] = Counter()
    for text in texts:
        for match in _SAMPLE.finditer(text):
            name, value = match["name"], float(match["value"])
            if name == "vargpt_requests_total":
                outcome = _OUTCOME.search(match["labels"] or "")
                told = outcome[1] if outcome else ANSWERED
                totals["error" if told in ERRORS else told] += value
            elif name in ("vargpt_reply_seconds_sum", "vargpt_reply_seconds_count"):
                totals[name] += value
    return Traffic(
        totals[ANSWERED] + totals["error"],
        totals["error"],
        totals["vargpt_reply_seconds_count"],
        totals["vargpt_reply_seconds_sum"],
    )
