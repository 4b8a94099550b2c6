"""What an import is made of: which published tensor becomes which weight, what is left out, what is new.

Made of names and shapes alone, so that whatever does not fit is found before a byte is written.

Source: the released code of VARGPT v1 (arXiv:2501.12327), which assembles its model of LLaVA-1.5, VAR and
VAR's image tokenizer before stage 1. None of them has the generation projectors, which start from random
weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from model.config import VargptConfig
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.published import (
    Renaming,
    UnknownNameError,
    decoder_names,
    in_our_shape,
    is_released_vargpt,
    tokenizer_names,
    vargpt_names,
)
from model.weight_files import StoredTensor, WeightFiles, open_weights

# Shape legend: R = classes and null, C = decoder width.

# What starts from random weights where everything else is there.
GENERATION_PROJECTORS = ("generation_input_projector", "generation_output_projector")
# Kept in float32 unless it was published in less: in bfloat16 3 of 100 image codes come out differently, and
# they are what stages 1 and 3 learn to draw. Everything else may be rounded: training starts from master
# weights of its own, whose first step at a rate of 5e-5 changes them by as much as this rounding, 0.2 % at
# most.
FLOAT32_PARTS = frozenset({"image_tokenizer"})
START_EMBEDDING = "visual_decoder.start_embedding.weight"
_PARTS_OF_LLAVA = ("language_model", "understanding_projector", "vision_tower")


@dataclass(frozen=True, kw_only=True)
class ImportSources:
    """Published weights, file or folder each. UserError unless they go together.

    Args:
        vargpt: A released VARGPT, instead of the next three.
        llava: LLaVA-1.5 in transformers' layout: language model, vision tower, understanding projector.
        var: VAR, the visual decoder.
        tokenizer: VAR's image tokenizer.
        base: A model folder of ours, whole or not, which has all parts that the others do not have.
    """

    vargpt: Path | None = None
    llava: Path | None = None
    var: Path | None = None
    tokenizer: Path | None = None
    base: Path | None = None

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError("no published weights are named: vargpt, or llava, var and tokenizer")
        if self.vargpt and len(self.paths) > 1:
            raise UserError(f"{self.vargpt} is a whole VARGPT: give nothing else with it")

    @property
    def paths(self) -> dict[str, Path]:
        """Those that are given, by name; the base first, because others take the place of its parts."""
        named = {name: getattr(self, name) for name in ("base", "vargpt", "llava", "var", "tokenizer")}
        return {name: Path(path) for name, path in named.items() if path}


@dataclass(frozen=True)
class Placement:
    """A tensor of a source, and the weight of our model that it becomes.

    Args:
        convert: To our shape, in the source's type.
    """

    files: WeightFiles
    key: str
    name: str
    convert: Callable[[Tensor], Tensor]

    @property
    def stored(self) -> StoredTensor:
        return self.files.tensors[self.key]

    def read(self) -> Tensor:
        return self.convert(self.files.read(self.key))


@dataclass(frozen=True)
class LeftOut:
    """A tensor of a source that our model does not have, and why."""

    files: WeightFiles
    key: str
    reason: str


@dataclass(frozen=True)
class ImportPlan:
    """Everything about an import but the content of tensors.

    Args:
        layout: All weights of the result on the meta device, in the model's order and in the types that they
            are stored in.
        placements: By the name of the weight.
        new_parts: Start from random weights.
        missing_parts: Without them the result is no model yet.
    """

    config: VargptConfig
    layout: dict[str, Tensor]
    placements: dict[str, Placement]
    left_out: tuple[LeftOut, ...]
    new_parts: tuple[str, ...]
    missing_parts: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Size of all weights."""
        return sum(tensor.nbytes for tensor in self.layout.values())


def plan_import(
    sources: ImportSources, config: VargptConfig, dtype: torch.dtype, float32_parts: frozenset[str]
) -> ImportPlan:
    """Decide where every weight comes from, and in which type it is stored.

    Args:
        dtype: Of all weights but those of `float32_parts`, which keep their precision.

    Raises:
        UserError: names the file and the key that is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = VargptForConditionalGeneration(config).state_dict()
    parts = dict.fromkeys(part_of(name) for name in expected)
    if unknown := sorted(float32_parts - parts.keys()):
        raise UserError(f"{unknown[0]!r} is no part of the model, which are {', '.join(parts)}")
    collected = _Collected(expected)
    for kind, path in sources.paths.items():
        _collect(kind, open_weights(path), config, collected)
    found = {part_of(name) for name in collected.placements}
    missing = tuple(part for part in parts if part not in found)
    new = missing if set(missing) <= set(GENERATION_PROJECTORS) else ()
    missing = () if new else missing
    wide = {part for part in float32_parts if _is_other(collected.placements.values(), part, dtype)}
    layout = {
        name: tensor.to(_stored_type(tensor.dtype, torch.float32 if part_of(name) in wide else dtype))
        for name, tensor in expected.items()
        if part_of(name) not in missing
    }
    return ImportPlan(config, layout, collected.placements, tuple(collected.left_out), new, missing)


def part_of(name: str) -> str:
    """The part of the model, a module of it, that a weight belongs to."""
    return name.partition(".")[0]


def _stored_type(own: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if own.is_floating_point else own


def _is_other(placements: Iterable[Placement], part: str, dtype: torch.dtype) -> bool:
    """Whether a part was published in another type than the one that it would be stored in, or is new."""
    types = {placement.stored.dtype for placement in placements if part_of(placement.name) == part}
    return types != {dtype}


@dataclass
class _Collected:
    """What the sources read so far give."""

    expected: Mapping[str, Tensor]
    placements: dict[str, Placement] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def _collect(kind: str, files: WeightFiles, config: VargptConfig, collected: _Collected) -> None:
    """Add one source, in place of the same parts of those before it."""
    names = _names_in(kind, files)
    placements = [
        Placement(files, key, name, _conversion(kind, name, config)) for key, name in names.ours.items()
    ]
    for placement in placements:
        _refuse_misfit(placement, collected.expected)
    parts = {part_of(placement.name) for placement in placements}
    _refuse_incomplete(kind, files, parts, names, collected.expected)
    for name in [name for name in collected.placements if part_of(name) in parts]:
        replaced = collected.placements.pop(name)
        reason = f"replaced by {files.path.name}"
        collected.left_out.append(LeftOut(replaced.files, replaced.key, reason))
    collected.placements |= {placement.name: placement for placement in placements}
    collected.left_out += [LeftOut(files, key, reason) for key, reason in names.unused.items()]


def _names_in(kind: str, files: WeightFiles) -> Renaming:
    keys = list(files.tensors)
    if kind == "base":
        return Renaming({key: key for key in keys}, {})
    if kind in ("llava", "vargpt"):
        if is_released_vargpt(keys) != (kind == "vargpt"):
            what = "a whole VARGPT" if kind == "llava" else "no whole VARGPT"
            raise UserError(f"{files.path} is {what}: give it as {'vargpt' if kind == 'llava' else 'llava'}")
        try:
            return vargpt_names(keys)
        except UnknownNameError as error:
            raise UserError(f"{error} ({files.tensors[error.name].file})") from None
    prefix, names = {
        "var": ("visual_decoder.", decoder_names(keys)),
        "tokenizer": ("image_tokenizer.", tokenizer_names(keys)),
    }[kind]
    return Renaming({key: prefix + name for key, name in names.ours.items()}, names.unused)


def _conversion(kind: str, name: str, config: VargptConfig) -> Callable[[Tensor], Tensor]:
    if kind == "var" and name == START_EMBEDDING:
        return lambda classes_RC: start_embedding_of(classes_RC, config)
    return lambda tensor: in_our_shape(name, tensor)


def start_embedding_of(classes_RC: Tensor, config: VargptConfig) -> Tensor:
    """The start embedding from VAR's class embedding, (starts, C).

    The null start is VAR's null class, the start of an image is the mean of all other classes. All other rows
    are zero and never used; VARGPT has them because it numbers starts by token ids.
    """
    decoder = config.visual_decoder_config
    rows = classes_RC.new_zeros(decoder.num_starts, classes_RC.shape[1])
    rows[decoder.null_start] = classes_RC[-1]
    rows[decoder.image_start] = classes_RC[:-1].float().mean(0).to(rows.dtype)
    return rows


def _refuse_misfit(placement: Placement, expected: Mapping[str, Tensor]) -> None:
    """Raise UserError for a tensor without a place in the model, or of another shape than there."""
    name, stored = placement.name, placement.stored
    where = f"{placement.key} in {stored.file}"
    if name not in expected:
        raise UserError(f"{where} has no place in this architecture ({name})")
    shape = tuple(placement.convert(torch.empty(stored.shape, dtype=stored.dtype, device="meta")).shape)
    if shape != expected[name].shape:
        raise UserError(f"{where} is {shape}, expected {tuple(expected[name].shape)} ({name})")


def _refuse_incomplete(
    kind: str, files: WeightFiles, parts: set[str], names: Renaming, expected: Mapping[str, Tensor]
) -> None:
    """Raise UserError when a source has only some of the weights of a part, or not all parts of its kind."""
    everything = {part_of(name) for name in expected}
    wanted = {"vargpt": everything, "llava": {*_PARTS_OF_LLAVA}}.get(kind, parts)
    given = set(names.ours.values())
    missing = [name for name in expected if part_of(name) in parts | wanted and name not in given]
    if missing:
        raise UserError(f"{files.path} lacks {len(missing)} weights, the first becomes {missing[0]}")
