"""What a part of the backbones keeps on the disk while it learns, and its weights once it is done."""

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


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True)
class PartCheckpoints:
    """Checkpoints of one part; those of other parameters, seed or data are removed.

    Args:
        fingerprint: Names what the part learns from and how.
        every: Steps between two checkpoints.
        should_stop: Asked before every step.
    """

    folder: Path
    fingerprint: str
    every: int
    should_stop: Callable[[], bool] = never

    def is_due(self, step: int) -> bool:
        """Whether the tree after `step` steps is to be saved."""
        return step % self.every == 0

    def load(self) -> tuple[int, Any] | None:
        """Steps done and the tree that was saved with them, or None."""
        step, tensors, state = self._newest()
        return None if state is None else (step, unflatten_state(tensors, state["tree"]))

    def save(self, step: int, tree: Any) -> None:
        """Commit the tree after `step` steps. A full disk costs the checkpoint, not the training."""
        tensors, names = flatten_state(tree, "part")
        state = {"fingerprint": self.fingerprint, "is_done": False, "tree": names}
        try:
            store.save_step(self.folder, step, tensors, state)
        except store.SaveError as error:
            logger.warning("%s", error)

    def finished(self) -> dict[str, Tensor] | None:
        """The weights of a part that is done, or None."""
        _, tensors, state = self._newest()
        return tensors if state and state["is_done"] else None

    def seal(self, step: int, weights: dict[str, Tensor]) -> None:
        """The part is done: keep its weights and nothing else. SaveError when the disk is full."""
        # A tree of the last step may lie there already; the sealed one comes after it.
        state = {"fingerprint": self.fingerprint, "is_done": True}
        store.save_step(self.folder, step + 1, weights, state, keep=1)

    def _newest(self) -> tuple[int, dict[str, Tensor], dict[str, Any] | None]:
        step = store.newest_step(self.folder)
        if step is None:
            return 0, {}, None
        tensors, state = store.load_step(self.folder, step)
        if state["fingerprint"] != self.fingerprint:
            logger.info("%s was learned from something else and is removed", self.folder)
            shutil.rmtree(self.folder)
            return 0, {}, None
        return step, tensors, state
