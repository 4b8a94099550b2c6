"""Checkpoints of one backbone: what its training resumes from, and its weights once it is trained."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from training.checkpoints import store
from training.checkpoints.state_trees import flatten_state, unflatten_state

logger = logging.getLogger(__name__)


def never_stop() -> bool:
    """A `should_stop` that never stops a training."""
    return False


@dataclass(frozen=True)
class BackboneCheckpoints:
    """Checkpoint folder of one backbone; checkpoints with another fingerprint are deleted when loading.

    Args:
        fingerprint: Hash of all that decides what the backbone learns.
        every: Steps between two checkpoints.
        should_stop: Called before every step of the training.
    """

    folder: Path
    fingerprint: str
    every: int
    should_stop: Callable[[], bool] = never_stop

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after `step` steps."""
        return step % self.every == 0

    def load(self) -> tuple[int, Any] | None:
        """Number of steps done and training state of the newest checkpoint, or None."""
        step, tensors, state = self._load_newest()
        return None if state is None else (step, unflatten_state(tensors, state["tree"]))

    def save(self, step: int, training_state: Any) -> bool:
        """Write a checkpoint after `step` steps. False when the disk did not take it, which is logged."""
        tensors, tree = flatten_state(training_state, "part")
        state = {"fingerprint": self.fingerprint, "is_done": False, "tree": tree}
        try:
            store.save_step(self.folder, step, tensors, state)
        except store.SaveError as error:
            logger.warning("%s", error)
            return False
        return True

    def load_trained(self) -> dict[str, Tensor] | None:
        """The weights of the backbone if its training is done, or None."""
        _, tensors, state = self._load_newest()
        return tensors if state and state["is_done"] else None

    def save_trained(self, steps: int, weights: dict[str, Tensor]) -> None:
        """Write the weights after the last step and delete all checkpoints. SaveError on a full disk."""
        # The last step may have a checkpoint, too; the weights come after it.
        state = {"fingerprint": self.fingerprint, "is_done": True}
        store.save_step(self.folder, steps + 1, weights, state, keep=1)

    def _load_newest(self) -> tuple[int, dict[str, Tensor], dict[str, Any] | None]:
        newest = store.load_latest(self.folder)
        if newest is None:
            return 0, {}, None
        if newest[2]["fingerprint"] != self.fingerprint:
            logger.info("%s is of other data, parameters or seed and is deleted", self.folder)
            shutil.rmtree(self.folder)
            return 0, {}, None
        return newest
