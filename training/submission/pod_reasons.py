"""Why a pod does not run, or why it ended, in one sentence, from its status and its events."""

from collections.abc import Iterator
from typing import Any

# They stand for a pod that is on its way.
ORDINARY = frozenset({"ContainerCreating", "PodInitializing", "Completed"})


def waiting_reason(pod: Any) -> str | None:
    """What a pod waits for, in the words of scheduler or kubelet; None if it runs or merely starts."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    for status in container_statuses(pod):
        waiting = status.state.waiting if status.state else None
        if waiting and waiting.reason not in ORDINARY:
            before = status.last_state.terminated if status.last_state else None
            died = f", after exit code {before.exit_code}" if before else ""
            return f"{status.name}: {waiting.reason}{died}: {waiting.message or ''}".rstrip(": ")
    return None


def exit_codes(pod: Any) -> Iterator[tuple[str, int, str]]:
    """Every container that has ended otherwise than well: its name, exit code and the kubelet's reason."""
    for status in container_statuses(pod):
        for state in (status.state, status.last_state):
            ended = state.terminated if state else None
            if ended and ended.exit_code:
                yield status.name, ended.exit_code, _told(ended)
                break


def container_statuses(pod: Any) -> list[Any]:
    """Statuses of init containers and containers, in the order in which they run."""
    return [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]


def _told(ended: Any) -> str:
    """`OOMKilled`; nothing where the kubelet says no more than the exit code does."""
    return ended.reason if ended.reason not in (None, "Error") else ""


def event_reason(event: Any) -> str | None:
    """A warning about an object, such as a volume that cannot be mounted or a quota that is used up."""
    if event.type != "Warning" or event.reason in ("Unhealthy", "BackOff", "FailedScheduling"):
        return None
    return f"{event.reason}: {event.message}"
