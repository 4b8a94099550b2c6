"""Which matrix products a machine is quick at."""

import torch

AUTO, FLOAT32, BFLOAT16 = "auto", "no", "bf16"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)
# With these instructions bfloat16 is 2 (AVX-512) to 7 (AMX) times as fast as float32, without half as fast.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def resolved(precision: str) -> str:
    """What `auto` means on this machine: bfloat16 where it is quick, or float32; others as they are.

    Raises ValueError for anything unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, got {precision!r}")
    if precision != AUTO:
        return precision
    return BFLOAT16 if _multiplies_bfloat16() else FLOAT32


def _multiplies_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in BFLOAT16_INSTRUCTIONS)
