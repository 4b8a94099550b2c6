"""Skips steps whose gradient is infinite or NaN; too many in a row stop the run."""

import logging
import math
from collections.abc import Callable, Sequence

from model.errors import UserError

logger = logging.getLogger(__name__)

MAX_NAMES = 16


class NonFiniteGradientSkipper:
    """Decides before every update whether to skip it, and counts skipped steps.

    Args:
        limit: Steps in a row that may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_skipped = 0
        self._num_in_a_row = 0

    def should_skip(self, step: int, norm: float, record_names: Callable[[], Sequence[str]]) -> bool:
        """Whether the gradient norm of a step is not finite, so that its update must be left out.

        Args:
            record_names: Returns the names of the records in the batch, for the log; called for such a step.

        Raises:
            UserError: it is not finite for more steps in a row than the limit.
        """
        if math.isfinite(norm):
            self._num_in_a_row = 0
            return False
        self.num_skipped += 1
        self._num_in_a_row += 1
        names = list(record_names())
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        message = f"the gradient of step {step} is {norm}, learned from {', '.join(names[:MAX_NAMES])}{more}"
        if self._num_in_a_row > self.limit:
            raise UserError(f"{self._num_in_a_row} steps in a row had no finite gradient: {message}")
        logger.warning("step skipped: %s", message)
        return True
