"""One promotion at a time, and none left half done, though MLflow has neither locks nor transactions.

A promotion writes a tag of its own on the registered model and then reads those of all others. Of two at
once, at least one sees the other, because each writes before it reads: the earlier goes on when it is alone,
the later gives up. The tag holds all that is needed to complete the promotion. A process that died leaves its
tag behind, and the next promotion or rollback completes it where the alias was moved already, else drops it.

What this rests on: a write is seen by every later read, which one database gives; and a promotion that is
alive takes less than LEASE_SECONDS, after which others hold it for dead. On one machine a dead process is
recognised at once.
"""

import dataclasses
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from model.errors import UserError
from training.registry.lineage import TAG_PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

INTENT_PREFIX = f"{TAG_PREFIX}intent."
LEASE_SECONDS = 600.0
# How long the earlier of two waits for the later to give up, and how often it looks.
WAIT_SECONDS, LOOK_SECONDS = 10.0, 0.1
# By so much the system's clock may be set while a process runs, which moves when it seems to have started.
CLOCK_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A promotion or rollback that is under way.

    Args:
        time: When it began, ISO 8601 in UTC.
        by: Who asked for it.
        machine: Where the process runs: host name, and the namespace in which its number counts.
        pid, started: The process: number, and start in seconds since 1970.
        version: The version that becomes champion; None until that is decided.
        champions: All champions in their order, once it is done.
        entry: What is written down about it.
    """

    id: str
    time: str
    by: str
    machine: str
    pid: int
    started: float
    version: str | None = None
    champions: tuple[str, ...] = ()
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The name of its tag on the registered model."""
        return f"{INTENT_PREFIX}{self.id}"

    @property
    def is_dead(self) -> bool:
        """The process is gone, or, on another machine, its time is over."""
        if self.machine != _this_machine():
            age = datetime.now(UTC) - datetime.fromisoformat(self.time)
            return age.total_seconds() > LEASE_SECONDS
        try:
            process = psutil.Process(self.pid)
            is_another = abs(process.create_time() - self.started) > CLOCK_SECONDS
            return is_another or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def precedes(self, other: "Intent") -> bool:
        """Whether it began earlier; between two of the same time their ids decide."""
        return (self.time, self.id) < (other.time, other.id)


def new_intent(by: str) -> Intent:
    """The intent of this process. UserError when nobody is named."""
    if not by.strip():
        raise UserError("by must name who promotes, it is empty")
    return Intent(
        id=uuid.uuid4().hex,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        by=by.strip(),
        machine=_this_machine(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
    )


@contextmanager
def promotion_lock(
    client: "MlflowClient", model_name: str, intent: Intent, settle: Callable[[Intent], None]
) -> Iterator[None]:
    """Holds the registered model for one promotion while the block runs.

    Raises UserError when another promotion is under way.

    Args:
        settle: Completes an intent whose version is the champion already, and drops any other. Called with
            those that dead processes left behind, and with our own in the end, also after an error.
    """
    _announce(client, model_name, intent)
    try:
        for left in _others(client, model_name, intent):
            logger.warning("%s began a promotion at %s that never ended: settling it", left.by, left.time)
            settle(left)
        yield
    finally:
        for own in _intents(client, model_name):
            if own.id == intent.id:
                settle(own)


def record_decision(client: "MlflowClient", model_name: str, intent: Intent) -> None:
    """Keep what was decided in the intent's tag. UserError when others hold us for dead."""
    if intent.id not in [own.id for own in _intents(client, model_name)]:
        raise UserError(
            f"the promotion took longer than {LEASE_SECONDS:g} s and another one went on: try again"
        )
    _write(client, model_name, intent)


def forget_intent(client: "MlflowClient", model_name: str, intent: Intent) -> None:
    """Delete the tag of an intent; it may be gone already."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model_tag(model_name, intent.tag)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _write(client: "MlflowClient", model_name: str, intent: Intent) -> None:
    text = json.dumps(dataclasses.asdict(intent), allow_nan=False)
    client.set_registered_model_tag(model_name, intent.tag, text)


def _announce(client: "MlflowClient", model_name: str, intent: Intent) -> None:
    """Write the tag, then wait until no other live promotion has one. UserError when one stays."""
    _write(client, model_name, intent)
    deadline = time.monotonic() + WAIT_SECONDS
    while alive := [other for other in _others(client, model_name, intent) if not other.is_dead]:
        first = min(alive, key=lambda other: (other.time, other.id))
        if first.precedes(intent) or time.monotonic() > deadline:
            forget_intent(client, model_name, intent)
            raise UserError(
                f"a promotion of {model_name} that {first.by} began at {first.time} is under way: try again"
            )
        time.sleep(LOOK_SECONDS)


def _others(client: "MlflowClient", model_name: str, intent: Intent) -> list[Intent]:
    return [other for other in _intents(client, model_name) if other.id != intent.id]


def _intents(client: "MlflowClient", model_name: str) -> list[Intent]:
    tags = client.get_registered_model(model_name).tags
    texts = [json.loads(value) for key, value in tags.items() if key.startswith(INTENT_PREFIX)]
    return [Intent(**{**fields, "champions": tuple(fields["champions"])}) for fields in texts]


def _this_machine() -> str:
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.exists() else ''}".strip()
