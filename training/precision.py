"""Where training runs, and with which precision of matrix products."""

import torch

from model.errors import UserError

AUTO, FLOAT32, BFLOAT16 = "auto", "no", "bf16"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)
# With these instructions bfloat16 is 2 (AVX-512) to 7 (AMX) times as fast as float32, without half as fast.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


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
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
