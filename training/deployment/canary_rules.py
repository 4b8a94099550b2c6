"""When a canary is as good as the version that is deployed: by its answers, and by its registered figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.errors import UserError
from training.deployment.registered_versions import RegisteredVersion
from training.deployment.service_metrics import Traffic
from training.registry.evaluation_subject import subject_of
from training.registry.gates import decide


@dataclass(frozen=True, kw_only=True)
class CanaryRules:
    """When a canary is as good as what it may replace.

    Args:
        margins: How much worse than the deployed version's each registered figure may be, nested as in
            metrics/evaluate.json.
        floors: The least that each figure must reach in any case.
        observe_seconds: How long both are compared.
        min_requests: Of the canary, below which nothing is decided.
        error_margin: By how much its share of errors may be greater.
        latency_factor, latency_seconds: Its mean latency may be so many times the other's, and so much more.
    """

    margins: Mapping[str, Any]
    floors: Mapping[str, Any]
    observe_seconds: float = 120.0
    min_requests: int = 20
    error_margin: float = 0.01
    latency_factor: float = 1.5
    latency_seconds: float = 0.1

    def objection_to_traffic(self, stable: Traffic, canary: Traffic) -> str | None:
        """Why a canary does not answer as well; None if it does."""
        if canary.requests < self.min_requests:
            return f"it had {canary.requests:.0f} requests, {self.min_requests} are needed to tell"
        if canary.error_share > stable.error_share + self.error_margin:
            return f"{canary.error_share:.1%} of its requests failed, of the other's {stable.error_share:.1%}"
        most = stable.latency * self.latency_factor + self.latency_seconds
        if stable.replies and canary.latency > most:
            return f"its replies take {canary.latency:.2f} s, the other's {stable.latency:.2f} s"
        return None

    def objection_to_figures(self, bar: RegisteredVersion | None, canary: RegisteredVersion) -> str | None:
        """Which gates of promotion the figures of a canary leave shut; None if all are open.

        Args:
            bar: What they are held against (`bar_of`); None for floors alone.

        Raises:
            UserError: the canary has no figures, or none for one of the gates.
        """
        if canary.figures is None:
            raise UserError(f"{canary} has no figures: evaluate it first")
        bars = [bar.figures] if bar and bar.figures else []
        failed = decide(canary.figures, bars, self.margins, self.floors).failed
        return "; ".join(str(gate) for gate in failed) or None


def bar_of(stable: RegisteredVersion | None, canary: RegisteredVersion) -> RegisteredVersion | None:
    """The deployed version, where its figures can be compared with a canary's; None where they set no bar.

    They set none where it is not registered, was withdrawn, or was measured on another test set.
    """
    if stable is None or stable.is_withdrawn or stable.figures is None or canary.figures is None:
        return None
    return stable if subject_of(stable.figures).test_set == subject_of(canary.figures).test_set else None
