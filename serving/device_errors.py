"""Which errors mean that the device cannot be used any more by this process."""

import torch


def is_fatal(error: Exception) -> bool:
    """Whether an error is of the device itself; running out of its memory is not.

    After a failed kernel every further call of CUDA in the process fails: only a restart helps.
    """
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )
