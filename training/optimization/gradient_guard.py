"""Steps whose gradient is not finite: skipped and counted, and too many in a row stop the run."""

import logging
import math
from collections.abc import Callable, Sequence

from model.errors import UserError

logger = logging.getLogger(__name__)

NAMES_SHOWN = 16


class GradientGuard:
    """Says before every update whether it may be made.

    Args:
        limit: Steps in a row that may be skipped.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_skipped = 0
        self._in_a_row = 0

    def allows(self, step: int, norm: float, records: Callable[[], Sequence[str]]) -> bool:
        """Whether a step with a gradient of this norm may change weights.

        Args:
            records: Asked for the names of what was learned from, when the step is skipped.

        Raises:
            UserError: more steps in a row than the limit were not finite.
        """
        if math.isfinite(norm):
            self._in_a_row = 0
            return True
        self.num_skipped += 1
        self._in_a_row += 1
        names = list(records())
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        told = f"the gradient of step {step} is {norm}, learned from {', '.join(names[:NAMES_SHOWN])}{more}"
        if self._in_a_row > self.limit:
            raise UserError(f"{self._in_a_row} steps in a row had no finite gradient: {told}")
        logger.warning("step skipped: %s", told)
        return False
