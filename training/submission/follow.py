"""Follows a job to its end by asking: phases, reasons why pods wait, new lines of log; an exit code at last.

The SDK's own wait gives up at the first question that is not answered, and watches break with the API server;
nothing here is lost when it is away.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.launching.exit_codes import DONE, PERMANENT_FAILURE, RETRYABLE_FAILURE
from training.submission.api import REQUEST_SECONDS
from training.submission.jobs import FAILED, SUCCEEDED, SUSPENDED, JobKind, Jobs, JobState, state_of
from training.submission.log_lines import LogReader
from training.submission.pod_reasons import event_reason, exit_codes, waiting_reason

POLL_SECONDS = 2.0
# Logs of so many pods are shown; of more, those of the first ones.
SHOWN_PODS = 4
# A failure whose reason can be told in the last lines of log, which the launcher and `vargpt` write so.
_ERROR = re.compile(r".*\berror: (?P<reason>.+)")


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        exit_code: 0 succeeded; 2 failed by the user's mistake, which another start cannot mend; 138 failed
            otherwise (deadline, retries used up, deleted by somebody).
        reason: One sentence; empty when it succeeded.
    """

    exit_code: int
    reason: str


class JobFollower:
    """Tells of one job whatever is new, until it has ended.

    Args:
        say: Takes a line; of a pod's log, or about the job.
        tail: How many lines of log from before; None for all.
    """

    def __init__(
        self, jobs: Jobs, kind: JobKind, name: str, say: Callable[[str], None], tail: int | None = None
    ) -> None:
        self.jobs, self.kind, self.name, self.say = jobs, kind, name, say
        self._log = LogReader(jobs.server, tail)
        self._state: JobState | None = None
        self._reasons: set[tuple[str, str]] = set()
        self._last_lines: dict[str, str] = {}
        self._errors: dict[str, str] = {}
        self._codes: dict[tuple[str, str], tuple[int, str]] = {}

    def to_end(self, poll_seconds: float = POLL_SECONDS) -> Outcome:
        """Follow until the job has ended or is deleted."""
        while True:
            job = self.jobs.find(self.kind, self.name)
            if job is None:
                return Outcome(RETRYABLE_FAILURE, f"job {self.name} was deleted")
            state = state_of(self.kind, job)
            self.look(state)
            if state.has_ended:
                return self._outcome(state)
            time.sleep(poll_seconds)

    def look(self, state: JobState) -> None:
        """Tell what is new now."""
        if self._state is None or (state.phase, state.queue) != (self._state.phase, self._state.queue):
            self.say(_phase_line(self.name, state))
        self._state = state
        pods = self.jobs.pods(self.kind, self.name)
        for number, pod in enumerate(pods):
            short = pod.metadata.name.removeprefix(f"{self.name}-")
            self._tell_reason(short, waiting_reason(pod))
            for container, code, word in exit_codes(pod):
                self._codes[pod.metadata.uid, container] = (code, word)
            lines = self._log.new_lines(pod) if number < SHOWN_PODS else []
            for line in lines:
                if match := _ERROR.fullmatch(line):
                    self._errors[pod.metadata.uid] = match["reason"]
                self._last_lines[pod.metadata.uid] = line
                self.say(f"{short}| {line}" if len(pods) > 1 else line)
        if not pods and not state.has_ended and state.phase != SUSPENDED:
            self._tell_reason(self.name, self._warning())

    def _tell_reason(self, what: str, reason: str | None) -> None:
        """Once: some alternate, such as a failed pull and the pause before the next."""
        if reason and (what, reason) not in self._reasons:
            self._reasons.add((what, reason))
            self.say(f"{what} waits: {reason}")

    def _warning(self) -> str | None:
        """Why a job has no pods: a quota or a policy that its operator met."""
        events = self.jobs.server.ask(
            self.jobs.server.core.list_namespaced_event,
            self.jobs.server.namespace,
            field_selector=f"involvedObject.name={self.name}",
            _request_timeout=REQUEST_SECONDS,
        )
        reasons = [reason for event in events.items if (reason := event_reason(event))]
        return reasons[-1] if reasons else None

    def _outcome(self, state: JobState) -> Outcome:
        if state.phase == SUCCEEDED:
            return Outcome(DONE, "")
        codes = [code for code, _ in self._codes.values()]
        # An uncaught exception (1) ends a job for good, as the user's mistake does.
        code = PERMANENT_FAILURE if {1, PERMANENT_FAILURE} & set(codes) else RETRYABLE_FAILURE
        words = [word for _, word in self._codes.values() if word]
        ended = {uid for uid, _ in self._codes}
        last = [line for uid, line in self._last_lines.items() if uid in ended]
        told = [*self._errors.values(), *words, *last, state.message, f"exit codes {codes}"]
        return Outcome(code, next(reason for reason in told if reason))


def _phase_line(name: str, state: JobState) -> str:
    """What a phase means, for somebody who waits."""
    if state.phase == SUSPENDED and state.queue:
        return f"{name} is held by queue {state.queue}: it starts when there is room"
    if state.phase == SUSPENDED:
        return f"{name} is suspended: it goes on when somebody resumes it (spec.runPolicy.suspend: false)"
    if state.phase == FAILED and state.message:
        return f"{name} is {state.phase}: {state.message}"
    return f"{name} is {state.phase}"


def describe(kind: JobKind, job: Mapping[str, Any]) -> dict[str, str]:
    """A job as a row of a table."""
    state = state_of(kind, job)
    metadata = job["metadata"]
    return {
        "name": metadata["name"],
        "kind": kind.kind,
        "stage": (metadata.get("labels") or {}).get("vargpt.io/stage", ""),
        "phase": state.phase,
        "created": str(metadata["creationTimestamp"]),
        "queue": state.queue or "",
    }
