"""Where training runs, and with which precision of matrix products."""

import torch

from model.cpu_kernels import multiplies_bfloat16
from model.errors import UserError

AUTO, FLOAT32, BFLOAT16 = "auto", "no", "bf16"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)


def training_device() -> torch.device:
    """The GPU of this process where there is one, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolved(precision: str) -> str:
    """What `auto` means on this machine: bfloat16 where it is quick, or float32; others as they are.

    Raises UserError for anything unknown.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    if precision != AUTO:
        return precision
    return BFLOAT16 if _multiplies_bfloat16() else FLOAT32


def _multiplies_bfloat16() -> bool:
    if training_device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies_bfloat16()
