"""What this machine has of what the platform needs, and how to get what is missing."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from training.lineage import data_md5, data_path, md5_on_disk

GIBIBYTE = 1 << 30
NEEDED_GIB = 4


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `advice` says how to get it where it is missing."""

    name: str
    found: str
    is_fine: bool
    advice: str = ""


def examine(pointer: Path) -> list[Finding]:
    """Everything worth knowing before a first run; only what is needed on every machine can be not fine."""
    return [
        Finding("python", platform.python_version(), True),
        *(_package(name) for name in ("torch", "transformers", "accelerate", "mlflow", "dvc", "bentoml")),
        *(_optional(name, extra) for name, extra in (("deepspeed", "deepspeed"), ("flash_attn", "flash"))),
        _device(),
        Finding("cores", str(os.cpu_count()), True),
        _room("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        _room("disk", shutil.disk_usage(pointer.resolve().parent).free),
        _data(pointer),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name), True)
    except PackageNotFoundError:
        return Finding(name, "missing", False, "make env")


def _optional(name: str, extra: str) -> Finding:
    if importlib.util.find_spec(name) is not None:
        return Finding(name, "present", True)
    return Finding(name, f"not installed; only needed on GPUs, extra `{extra}`", True)


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "none: size tiny runs on the CPU", True)
    properties = torch.cuda.get_device_properties(0)
    return Finding("gpu", f"{properties.name}, {properties.total_memory / GIBIBYTE:.0f} GiB", True)


def _room(name: str, size: int) -> Finding:
    gib = size / GIBIBYTE
    return Finding(name, f"{gib:.1f} GiB", gib >= NEEDED_GIB, f"{NEEDED_GIB} GiB are needed")


def _data(pointer: Path) -> Finding:
    advice = "vargpt data restore"
    try:
        is_right = md5_on_disk(data_path(pointer)) == data_md5(pointer)
    except ValueError as error:
        return Finding("data", str(error), False, advice)
    return Finding("data", f"{'as' if is_right else 'not as'} {pointer} names it", is_right, advice)
