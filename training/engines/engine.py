"""What every engine does for a module that computes a loss, whatever its processes share."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.errors import UserError
from training.checkpoints.slices import Flats, Slice

NamedParameters = list[tuple[str, nn.Parameter]]
MakeOptimizer = Callable[[NamedParameters], torch.optim.Optimizer]

POLL_SECONDS = 0.05


class GradientNorms(NamedTuple):
    """Euclidean norms of a gradient: of all of it, and of each part, by the first word of its parameters'
    names.
    """

    total: float
    by_part: dict[str, float]


class Engine(ABC):
    """One process of a training: its rank, its share of the state, and what processes tell each other.

    A step is `forward` and `backward` for each micro-batch, then `update`. All processes make the same calls
    in the same order, with the same number of micro-batches.
    """

    rank: int
    world_size: int
    device: torch.device
    # DeepSpeed's, as the recipe decides it; none under other engines.
    config: Mapping[str, Any] = MappingProxyType({})
    # Whether a module needs all processes to compute it together.
    shards_weights: bool = False
    # Whether processes must run the same modules in the same order, whatever their batches hold.
    needs_all_modules: bool = False
    # Whether each process owns all of the state.
    replicates_state: bool = True

    @property
    def is_main(self) -> bool:
        """Whether this is rank zero, which writes logs and results."""
        return self.rank == 0

    @abstractmethod
    def prepare(self, module: nn.Module, named: NamedParameters, make_optimizer: MakeOptimizer) -> None:
        """Take over a module, of which these parameters learn and all others are frozen."""

    @abstractmethod
    def forward(self, batch: Any, is_last: bool = True) -> Tensor:
        """The module's result for a micro-batch; `is_last` as in `backward`."""

    @abstractmethod
    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add a micro-batch's gradient; after the last one of a step, processes add up theirs."""

    @abstractmethod
    def update(self, by_part: bool = False) -> GradientNorms:
        """Clip, step the optimizer, drop gradients; the gradient's norms before clipping.

        A gradient that is not finite changes nothing. A parameter that nobody used has a gradient of zero.

        Args:
            by_part: Measure the norm of every part of the model, too.
        """

    @property
    @abstractmethod
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, whose learning rates may be set."""

    @abstractmethod
    def slices(self) -> list[Slice]:
        """What this process owns of what learns."""

    @abstractmethod
    def flats(self) -> Flats:
        """The state that this process owns, by kind, in the layout of `slices`; the tensors themselves, no
        copies.
        """

    @abstractmethod
    def begin_states(self, kinds: Callable[[str], Sequence[str]], num_updates: int) -> None:
        """Give the optimizer states of zeros, as after so many updates.

        Args:
            kinds: Returns what kinds of state the parameter of a name has.
        """

    @abstractmethod
    def apply_weights(self) -> None:
        """Compute with the weights that are now in `flats`, on all processes."""

    @abstractmethod
    def total(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over all processes, on the device."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """A small object of every process, by rank."""

    def _norms_by_part(self, squares: Mapping[str, Tensor], norm: float, clip_norm: float) -> GradientNorms:
        """Norms from sums of squares of the clipped gradient over all processes."""
        scale = max(1.0, norm / clip_norm)
        return GradientNorms(norm, {part: scale * float(value) ** 0.5 for part, value in squares.items()})

    def any_of(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return bool(self.total(torch.tensor(float(flag))) > 0)

    def broadcast(self, value: Any) -> Any:
        """Rank zero's small object, on every process."""
        return self.gather(value if self.is_main else None)[0]

    def together(self, work: Callable[[], Any], patience: float) -> Any:
        """Do on every process what takes long and differs between them, such as writing files; its result
        here.

        Processes that are done exchange a few bytes with the others until all are, so that none runs into the
        timeout of a collective operation.

        Args:
            patience: Seconds after which processes that are still busy are given up.

        Raises:
            UserError: names the processes that failed by a mistake of the user, on those that did not fail.
            OSError: names those that failed, any of them in another way: a later start may do.
            TimeoutError: names the processes that were still busy.
        """
        pool = ThreadPoolExecutor(max_workers=1)
        job, began = pool.submit(work), time.monotonic()
        pool.shutdown(wait=False)
        while True:
            is_busy, is_late = not job.done(), time.monotonic() - began > patience
            error = None if is_busy else job.exception()
            is_mistake = isinstance(error, UserError)
            flags = torch.zeros(self.world_size, 4)
            flags[self.rank] = torch.tensor([is_busy, error is not None, is_mistake, is_late]).float()
            busy, failed, mistaken, late = self.total(flags).T.tolist()
            if not any(busy):
                break
            if any(late):
                raise TimeoutError(f"processes {_ranks(busy)} were still busy after {patience:.0f} s")
            time.sleep(POLL_SECONDS)
        result = job.result()
        if any(failed):
            # Of all exit codes in a group that of a mistake counts most: it must not hide that a disk failed.
            kind = UserError if failed == mistaken else OSError
            raise kind(f"processes {_ranks(failed)} failed")
        return result


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    return name.split(".")[0]


def _ranks(flags: Sequence[float]) -> str:
    return ", ".join(str(rank) for rank, flag in enumerate(flags) if flag)
