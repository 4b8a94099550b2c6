"""How long something takes: warmed up apart, repeated, summed up; and how results are shown."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

MILLISECONDS = 1000.0


def milliseconds(
    action: Callable[[], object], repeats: int, device: str, warm_up: int = 2
) -> dict[str, float]:
    """Least, median and 95th percentile of single calls, in milliseconds; the first calls do not count."""
    taken = []
    for count in range(warm_up + repeats):
        _wait_for(device)
        began = time.perf_counter()
        action()
        _wait_for(device)
        if count >= warm_up:
            taken.append((time.perf_counter() - began) * MILLISECONDS)
    ordered = sorted(taken)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return {"min": ordered[0], "median": statistics.median(ordered), "p95": p95, "repeats": len(ordered)}


def _wait_for(device: str) -> None:
    """Work on a GPU goes on after a call returns."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, str]:
    """What the figures were taken on."""
    import transformers

    chip = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    return {
        "device": device,
        "chip": chip,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def show(result: Mapping[str, Any], out: Path | None) -> None:
    """A table of all figures on standard output, and the same as JSON in a file, or after it."""
    for name, value in _flat(result).items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        sys.stdout.write(f"{name:44}{shown:>24}\n")
    text = json.dumps(result, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)


def _flat(result: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in result.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
