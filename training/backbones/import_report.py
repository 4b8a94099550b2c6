"""What has become of every published tensor: import_report.json beside the weights, and a summary."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from model.errors import UserError
from model.weight_files import StoredTensor, WeightFiles
from training.backbones.import_plan import ImportPlan, part_of

REPORT = "import_report.json"


@dataclass(frozen=True)
class UsedTensor:
    """A published tensor and the weight that it has become; `rounded` says whether its type holds less."""

    file: str
    key: str
    becomes: str
    shape: tuple[int, ...]
    published: str
    stored: str
    rounded: bool


@dataclass(frozen=True)
class PartSummary:
    """All weights of one part; `source` is None for a part that starts from random weights."""

    source: str | None
    tensors: int
    parameters: int
    bytes: int
    types: tuple[str, ...]
    rounded: int


@dataclass(frozen=True)
class ImportReport:
    """The account of an import. Every tensor of every source is either in `used` or in `left_out`.

    Args:
        dtype, float32_parts, seed: What was asked for; with the sources they give the same weights again.
        left_out: Tensors that the model does not have, with file, key and reason.
        new: Weights that started from random numbers.
        missing_parts: Without them the folder is no model yet.
    """

    dtype: str
    float32_parts: tuple[str, ...]
    seed: int
    parts: dict[str, PartSummary]
    missing_parts: tuple[str, ...]
    new: tuple[str, ...]
    used: tuple[UsedTensor, ...]
    left_out: tuple[dict[str, str], ...]

    def write(self, folder: Path) -> None:
        """Write import_report.json."""
        (folder / REPORT).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        """The report without the single tensors."""
        reasons = Counter(tensor["reason"] for tensor in self.left_out)
        facts = asdict(self) | {"used": len(self.used), "new": len(self.new), "left_out": dict(reasons)}
        return json.loads(json.dumps(facts))

    def summary(self) -> str:
        """A table with a line for each part, and the reasons why tensors were left out."""
        rows = [("part", "from", "tensors", "parameters", "types", "rounded")]
        rows += [
            (
                name,
                part.source or f"random weights, seed {self.seed}",
                str(part.tensors),
                f"{part.parameters:,}",
                ", ".join(part.types),
                str(part.rounded),
            )
            for name, part in self.parts.items()
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
        lines = [line.rstrip() for line in lines]
        reasons = Counter(tensor["reason"] for tensor in self.left_out)
        lines += [f"left out: {count} ({reason})" for reason, count in sorted(reasons.items())]
        if self.missing_parts:
            lines.append(f"missing, to be added with --base: {', '.join(self.missing_parts)}")
        return "\n".join(lines)


def report_of(
    plan: ImportPlan,
    rounded: Mapping[str, bool],
    *,
    dtype: torch.dtype,
    float32_parts: frozenset[str],
    seed: int,
) -> ImportReport:
    """The report of a plan that was carried out.

    Args:
        rounded: Of every weight whether its published numbers were rounded.
    """
    used = tuple(
        UsedTensor(
            file=_name_of(placement.files, placement.stored),
            key=placement.key,
            becomes=placement.name,
            shape=placement.stored.shape,
            published=_type_name(placement.stored.dtype),
            stored=_type_name(plan.layout[placement.name].dtype),
            rounded=rounded[placement.name],
        )
        for placement in plan.placements.values()
    )
    left_out = tuple(
        {"file": _name_of(item.files, item.files.tensors[item.key]), "key": item.key, "reason": item.reason}
        for item in plan.left_out
    )
    return ImportReport(
        dtype=_type_name(dtype),
        float32_parts=tuple(sorted(float32_parts)),
        seed=seed,
        parts={part: _summary_of(part, plan, rounded) for part in dict.fromkeys(map(part_of, plan.layout))},
        missing_parts=plan.missing_parts,
        new=tuple(name for name in plan.layout if part_of(name) in plan.new_parts),
        used=used,
        left_out=left_out,
    )


def _summary_of(part: str, plan: ImportPlan, rounded: Mapping[str, bool]) -> PartSummary:
    tensors = {name: tensor for name, tensor in plan.layout.items() if part_of(name) == part}
    sources = {plan.placements[name].files.path.name for name in tensors if name in plan.placements}
    return PartSummary(
        source=", ".join(sorted(sources)) or None,
        tensors=len(tensors),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
        types=tuple(sorted({_type_name(tensor.dtype) for tensor in tensors.values()})),
        rounded=sum(rounded.get(name, False) for name in tensors),
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name_of(files: WeightFiles, stored: StoredTensor) -> str:
    """A file by its name from the source on, the same wherever the source lies."""
    return stored.file.relative_to(files.path.parent).as_posix()


def read_choices(folder: Path) -> tuple[torch.dtype, frozenset[str], int]:
    """Type, float32 parts and seed of an import, as its report says. UserError when there is no report."""
    path = folder / REPORT
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return getattr(torch, report["dtype"]), frozenset(report["float32_parts"]), report["seed"]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {folder} was not imported") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the report of an import: {error!r}") from None
