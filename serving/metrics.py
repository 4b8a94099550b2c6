"""Prometheus metrics of one engine, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.generation.generate import Event, Reply
    from serving.jobs import Choice

PREFIX = "vargpt"
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
REPLY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class EngineMetrics:
    """Counters, gauges and histograms; safe from any thread. Times are in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests by route and outcome", "route", "outcome")
        self.refused = self._counter("refused", "Requests refused for lack of room or readiness", "reason")
        self.choices = self._counter("choices", "Replies by outcome", "outcome")
        self.text_tokens = self._counter("text_tokens", "Text tokens written")
        self.images = self._counter("images", "Pictures drawn")
        self.queue_wait = self._seconds("queue_wait", "From entering the queue to leaving it", REPLY_BUCKETS)
        self.first_token = self._seconds(
            "time_to_first_token", "From a request's arrival to the first token of each choice", REPLY_BUCKETS
        )
        self.token_gap = self._seconds("time_between_tokens", "Between tokens of one text", STEP_BUCKETS)
        self.scale = self._seconds(
            "scale", "Time for one scale of a picture; the first may include waiting for text", STEP_BUCKETS
        )
        self.reply = self._seconds("reply", "From a request's arrival to a complete reply", REPLY_BUCKETS)
        self.batch = self._seconds("batch", "Duration of a batch", REPLY_BUCKETS)
        self.batch_size = Histogram(
            "batch_size", "Choices in a batch", namespace=PREFIX, registry=self.registry, buckets=BATCH_SIZES
        )

    def watch(self, queue_length: Callable[[], int], running: Callable[[], int]) -> None:
        """Adds the gauges, whose values are asked for whenever the metrics are read."""
        gauges = {
            "queue_length": ("Choices that wait", queue_length),
            "running": ("Choices in the present batch", running),
        }
        for name, (text, value) in gauges.items():
            Gauge(name, text, namespace=PREFIX, registry=self.registry).set_function(value)

    def observe_start(self, choice: Choice, now: float) -> None:
        """A choice leaves the queue."""
        self.queue_wait.observe(now - choice.job.submitted)

    def observe_event(self, choice: Choice, event: Event, now: float) -> None:
        """A choice, whose `last_event` is the one before, has got a token or a scale."""
        if choice.last_event is None:
            self.first_token.observe(now - choice.job.options.arrived)
            return
        kind, then = choice.last_event
        if event.type == "scale":
            self.scale.observe(now - then)
        elif event.type == kind == "token":
            self.token_gap.observe(now - then)

    def observe_reply(self, choice: Choice, reply: Reply, now: float) -> None:
        """A choice is complete."""
        self.choices.labels(outcome="answered").inc()
        self.text_tokens.inc(len(reply.token_ids))
        self.images.inc(len(reply.images))
        self.reply.observe(now - choice.job.options.arrived)

    def observe_batch(self, size: int, seconds: float) -> None:
        """A batch has ended."""
        self.batch_size.observe(size)
        self.batch.observe(seconds)

    def render(self) -> str:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry).decode("utf-8")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            name, text, namespace=PREFIX, unit="seconds", registry=self.registry, buckets=buckets
        )


def without_own(text: str) -> str:
    """Prometheus text less our metrics.

    Under BentoML, prometheus_client also writes all metrics of a process into a folder that processes share.
    """
    names = (f"{PREFIX}_", f"# HELP {PREFIX}_", f"# TYPE {PREFIX}_")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(names))
