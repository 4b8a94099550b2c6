"""Counters of the engine, written in Prometheus' text format."""

import threading
from collections import defaultdict

PREFIX = "vargpt_"
HELP = {
    "choices": "Replies by outcome",
    "text_tokens": "Text tokens written",
    "images": "Pictures drawn",
    "refused": "Requests refused before any work, by reason",
    "batch_seconds": "Duration of a batch",
    "batch_size": "Choices in a batch",
    "first_token_seconds": "From arrival to the first token or picture",
    "reply_seconds": "From arrival to the complete reply",
    "queue_length": "Choices waiting",
    "running": "Choices in the present batch",
}


class Meters:
    """Counts (only growing) and observations (sum and number); safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0])

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter."""
        text = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
        with self._lock:
            self._counts[name, text] += amount

    def observe(self, name: str, value: float) -> None:
        """Adds an observation to a summary."""
        with self._lock:
            self._sums[name][0] += value
            self._sums[name][1] += 1

    def render(self, **gauges: float) -> str:
        """Everything in Prometheus' text format, with the present value of the gauges."""
        lines: list[str] = []
        with self._lock:
            for name in sorted({name for name, _ in self._counts}):
                lines += _header(f"{name}_total", HELP[name], "counter")
                for (counted, labels), value in sorted(self._counts.items()):
                    if counted == name:
                        lines.append(f"{PREFIX}{name}_total{{{labels}}} {value:.15g}")
            for name, (total, number) in sorted(self._sums.items()):
                lines += _header(name, HELP[name], "summary")
                lines += [f"{PREFIX}{name}_sum {total:.6g}", f"{PREFIX}{name}_count {number}"]
        for name, value in gauges.items():
            lines += [*_header(name, HELP[name], "gauge"), f"{PREFIX}{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _header(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} {kind}"]
