"""Content of imported weights: made of published tensors or of random numbers, and compared with what was
written.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.weight_files import open_weights
from training.backbones.import_plan import GENERATION_PROJECTORS, ImportPlan, part_of

# What is done, of how much, in bytes.
OnProgress = Callable[[str, int, int], None]


def no_progress(title: str, done: int, total: int) -> None:
    """An `OnProgress` that shows nothing."""


class TensorMaker:
    """Makes the weights of a plan, one after the other."""

    def __init__(self, plan: ImportPlan, seed: int) -> None:
        self.plan, self.seed = plan, seed
        self._new: dict[str, Tensor] = {}

    def make(self, name: str) -> tuple[Tensor, bool]:
        """A weight in the type that it is stored in, and whether its published numbers were rounded."""
        dtype = self.plan.layout[name].dtype
        if name not in self.plan.placements:
            return self._initial(name).to(dtype), False
        published = self.plan.placements[name].read()
        tensor = published.to(dtype)
        is_rounded = dtype != published.dtype and not torch.equal(tensor.to(published.dtype), published)
        return tensor, is_rounded

    def _initial(self, name: str) -> Tensor:
        if name not in self._new:
            part = part_of(name)
            projector = initial_projector(self._meta_model, part, self.seed)
            self._new = {f"{part}.{inside}": tensor for inside, tensor in projector.items()}
        return self._new[name]

    @cached_property
    def _meta_model(self) -> VargptForConditionalGeneration:
        with torch.device("meta"):
            return VargptForConditionalGeneration(self.plan.config)


def initial_projector(model: VargptForConditionalGeneration, part: str, seed: int) -> dict[str, Tensor]:
    """Random weights of a generation projector, as transformers draws them for a model of this configuration.

    Args:
        model: On the meta device; the projector leaves it.
    """
    projector = model.get_submodule(part).to_empty(device="cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + GENERATION_PROJECTORS.index(part))
        for module in projector.modules():
            model._init_weights(module)
    return projector.state_dict()


def compare(plan: ImportPlan, seed: int, folder: Path, on_progress: OnProgress) -> None:
    """Raise UserError for the first weight in a folder that is not what its source gives."""
    written = open_weights(folder)
    if differing := sorted(plan.layout.keys() ^ written.tensors.keys()):
        raise UserError(f"{folder} and the sources differ in {len(differing)} weights: {differing[0]} ...")
    maker, done = TensorMaker(plan, seed), 0
    # In the order of the files, as they were written.
    for name, stored in written.tensors.items():
        on_progress("verify", done, plan.nbytes)
        expected, _ = maker.make(name)
        if not _has_same_bits(expected, written.read(name)):
            origin = plan.placements.get(name)
            source = f"{origin.key} in {origin.stored.file}" if origin else "its random initial weights"
            raise UserError(f"{name} in {stored.file} is not {source}")
        done += expected.nbytes
    on_progress("verify", done, plan.nbytes)


def _has_same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, not-a-number included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().flatten().view(torch.uint8), other.flatten().view(torch.uint8))
