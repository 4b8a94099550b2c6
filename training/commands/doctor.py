"""What this machine has of what the platform needs, and how to get what is missing."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.errors import redact
from training.registry.data_pointer import data_md5, data_path, md5_on_disk

GIBIBYTE = 1 << 30
NEEDED_GIB = 4
SQLITE = "sqlite:///"
# What makes training on GPUs quicker or smaller: the module, and the extra of pyproject.toml that has it.
OPTIONAL = {"deepspeed": "deepspeed", "flash_attn": "flash", "liger_kernel": "liger"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `advice` says how to get it where it is missing."""

    name: str
    found: str
    is_fine: bool
    advice: str = ""


def check_machine(pointer: Path, tracking_uri: str) -> list[Finding]:
    """Everything worth knowing before a first run; only what is needed on every machine can be not fine."""
    return [
        Finding("python", platform.python_version(), True),
        *(_package(name) for name in ("torch", "transformers", "accelerate", "mlflow", "dvc", "bentoml")),
        *(_optional(name, extra) for name, extra in OPTIONAL.items()),
        _device(),
        Finding("cores", str(os.cpu_count()), True),
        _room("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        _room("disk", shutil.disk_usage(pointer.resolve().parent).free),
        _mlflow(tracking_uri),
        _data(pointer),
    ]


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name), True)
    except PackageNotFoundError:
        return Finding(name, "missing", False, "make env")


def _optional(name: str, extra: str) -> Finding:
    if importlib.util.find_spec(name) is not None:
        return Finding(name, "installed", True)
    return Finding(name, f"not installed; for GPUs: pip install -e '.[{extra}]'", True)


def _device() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("gpu", "none: size tiny runs on the CPU", True)
    properties = torch.cuda.get_device_properties(0)
    return Finding("gpu", f"{properties.name}, {properties.total_memory / GIBIBYTE:.0f} GiB", True)


def _room(name: str, size: int) -> Finding:
    gib = size / GIBIBYTE
    return Finding(name, f"{gib:.1f} GiB", gib >= NEEDED_GIB, f"{NEEDED_GIB} GiB are needed")


def _mlflow(uri: str) -> Finding:
    from training.tracking.mlflow_run import connect, outage_errors

    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        return Finding("tracking", f"{redact(uri)} is made by the first run", True)
    try:
        connect(uri).search_experiments(max_results=1)
    except outage_errors() as error:
        advice = "set MLFLOW_TRACKING_URI, or start the server; training goes on without, see `vargpt sync`"
        return Finding("tracking", f"{redact(uri)} cannot be reached: {redact(error)}", False, advice)
    return Finding("tracking", f"{redact(uri)} answers", True)


def _data(pointer: Path) -> Finding:
    advice = "dvc pull"
    try:
        is_right = md5_on_disk(data_path(pointer)) == data_md5(pointer)
    except ValueError as error:
        return Finding("data", str(error), False, advice)
    return Finding("data", f"{'as' if is_right else 'not as'} {pointer} names it", is_right, advice)
