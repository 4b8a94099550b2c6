"""Measuring and reporting: milliseconds of repeated calls, the machine, a table and JSON."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

MILLISECONDS = 1000.0


def positive_int(text: str) -> int:
    """A command-line option that counts something, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def milliseconds(
    action: Callable[[], object], repeats: int, device: str, warm_up: int = 2
) -> dict[str, float]:
    """Minimum, median and 95th percentile of single calls, in milliseconds, after some calls to warm up."""
    durations = []
    for count in range(warm_up + repeats):
        _synchronize(device)
        start = time.perf_counter()
        action()
        _synchronize(device)
        if count >= warm_up:
            durations.append((time.perf_counter() - start) * MILLISECONDS)
    durations.sort()
    p95 = durations[min(len(durations) - 1, int(0.95 * len(durations)))]
    return {
        "min": durations[0],
        "median": statistics.median(durations),
        "p95": p95,
        "repeats": len(durations),
    }


def _synchronize(device: str) -> None:
    """Wait for a GPU, which goes on working after a call has returned."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def machine(device: str) -> dict[str, str]:
    """Device and versions that the measurements were made with."""
    is_cuda = device.startswith("cuda")
    chip = torch.cuda.get_device_name(device) if is_cuda else f"{torch.get_num_threads()} threads"
    return {
        "device": device,
        "chip": chip,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def report(measured: Mapping[str, Any], out: Path | None) -> None:
    """Write a table to standard output, and the same as JSON to a file, or after the table."""
    for name, value in _flat(measured).items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        sys.stdout.write(f"{name:44}{shown:>24}\n")
    text = json.dumps(measured, indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text)


def _flat(measured: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in measured.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
