"""The Trainer's own step of stages 1, 2 and 3, timed on one device with rows as long as fit.

Samples are as long as `vargpt plan` takes them to be, of random words, pictures and codes, packed into rows.
A step is what training does: train mode, two micro-batches, clipping, AdamW, activation checkpointing as the
recipe says.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.requests import random_model
from model.batches import Encoded, packed
from model.config import VargptConfig, preset
from model.losses import IGNORED
from model.modeling import VargptForConditionalGeneration
from training.engines.make import make_engine
from training.params import Params, StageParams, load_params
from training.planning.gpus import GPUS
from training.planning.plan import Assumptions, plan_stage
from training.planning.recipes import Changes, changed_params
from training.planning.workload import Sample, sample_of
from training.stages.stage_table import freeze_for, stage_named
from training.stages.step_metrics import StepMetrics
from training.stages.throughput import Throughput
from training.stages.trainer import Trainer

STAGES = ("stage1", "stage2", "stage3")
PARAMS = Path(__file__).parents[1] / "params.yaml"
ROW_TOKENS = {"7b": (4096, 8192, 16384, 32768), "tiny": (256, 512)}
ROWS = 2
WARM_UP = 2
# Below, stage 2 learns adapters: the whole language model with its states takes more.
FULL_STAGE2_BYTES = 120e9
LORA_RANK = 64
# What another machine may lack (peft, a C compiler for torch.compile) or have in another version.
FAULTS = (ImportError, RuntimeError, TypeError, AttributeError, ValueError, LookupError)
FAULT_LENGTH = 500


def training_speed(
    name: str, device: str, repeats: int, is_over: Callable[[], bool]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(stage, row length, whether blocks are compiled; figures), as long as rows fit and there is time.

    All stages take turns, shortest rows first, so that each has a figure when time runs out.
    """
    over: set[tuple[str, bool]] = set()
    for compiles, row_tokens in _in_turn(ROW_TOKENS[name]):
        for stage in STAGES:
            if (stage, compiles) in over:
                continue
            if is_over():
                return
            figures = _attempted(name, stage, device, row_tokens, repeats, compiles)
            # What it held is free only here, after its exception.
            gc.collect()
            if compiles:
                # Else the shapes of one measurement make those of the next dynamic.
                torch.compiler.reset()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            if "step_ms" not in figures:
                over.add((stage, compiles))
            yield f"{stage}_{row_tokens}{'_compiled' if compiles else ''}", figures


def _in_turn(lengths: Sequence[int]) -> list[tuple[bool, int]]:
    """Whether blocks are compiled, and the row length: compiled ones after the next longer without."""
    order = [
        (place + 1.5 * compiles, compiles) for place in range(len(lengths)) for compiles in (False, True)
    ]
    return [(compiles, lengths[int(place - 1.5 * compiles)]) for place, compiles in sorted(order)]


def _attempted(
    name: str, stage: str, device: str, row_tokens: int, repeats: int, compiles: bool
) -> dict[str, Any]:
    """Figures, or why there are none: a machine that is lent for minutes must not end at the first fault."""
    try:
        return _measured(name, stage, device, row_tokens, repeats, compiles)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    except FAULTS as error:
        return {"failed": f"{type(error).__name__}: {error}"[:FAULT_LENGTH]}


def _measured(
    name: str, stage_name: str, device: str, row_tokens: int, repeats: int, compiles: bool
) -> dict[str, Any]:
    params = _params(name, stage_name, device, row_tokens, WARM_UP + repeats, compiles)
    config, sample = preset(params.preset), sample_of(getattr(params, stage_name).mixture)
    recipe: StageParams = getattr(params, stage_name)
    stage, engine = stage_named(stage_name), make_engine(recipe, params)
    torch.manual_seed(0)
    model = random_model(name, device, torch.bfloat16 if params.precision == "bf16" else torch.float32)
    learning = freeze_for(model, stage, recipe.lora)
    rows = SyntheticRows(model, sample, samples_of_row(config, sample, row_tokens), not recipe.cached_codes)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    steps: list[StepMetrics] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(engine, model, learning, rows, recipe, params, Path(folder), lambda: False)
        trainer.run(0, steps.append, dict)
    throughput = Throughput(model.config, stage, recipe, engine.world_size, engine.device)
    middle = sorted(steps[WARM_UP:], key=lambda step: step.seconds)[repeats // 2]
    figures: dict[str, Any] = {"lora": recipe.lora is not None, "step_ms": 1000 * middle.seconds}
    figures["step_ms_min"] = 1000 * min(step.seconds for step in steps[WARM_UP:])
    figures["step_ms_mean"] = 1000 * statistics.mean(step.seconds for step in steps[WARM_UP:])
    figures |= throughput.metrics(middle)
    if device.startswith("cuda"):
        figures["peak_bytes"] = torch.cuda.max_memory_allocated()
    plan = plan_stage(stage_name, stage.trains, params, config, GPUS["h100"], 1, Assumptions())
    figures["planned_bytes"] = plan.memory.peak
    return figures


def _params(name: str, stage: str, device: str, row_tokens: int, steps: int, compiles: bool) -> Params:
    """The recipe of the size, for one process, without what is not measured here."""
    params = load_params(PARAMS, name)
    needs_lora = name == "7b" and stage == "stage2" and _memory(device) < FULL_STAGE2_BYTES
    changes = Changes(
        engine="ddp", offload=False, pack_tokens=row_tokens, lora_rank=LORA_RANK if needs_lora else None
    )
    params = changed_params(params, stage, changes)
    recipe = getattr(params, stage)
    rest = {
        "steps": steps,
        "checkpoint_every": steps + 1,
        "validate_every": 0,
        "loader_workers": 0,
        "muon_lr": 0.0,
        "ema": 0.0,
        "compile": compiles,
        "batch": ROWS * samples_of_row(preset(params.preset), sample_of(recipe.mixture), row_tokens),
    }
    return params.model_copy(update={stage: recipe.model_copy(update=rest)})


def samples_of_row(config: VargptConfig, sample: Sample, row_tokens: int) -> int:
    """How many samples of mean length a row has room for, one at least."""
    return max(int(row_tokens / sample.positions(config)), 1)


def _memory(device: str) -> float:
    return float(torch.cuda.mem_get_info(device)[1]) if device.startswith("cuda") else 0.0


class SyntheticRows:
    """Stands where the loader does: each step has the same rows, packed full of samples of mean length."""

    def __init__(
        self, model: VargptForConditionalGeneration, sample: Sample, count: int, encodes: bool
    ) -> None:
        self._model, self._sample, self._encodes = model, sample, encodes
        self._rows = [packed([self._encoded(row * count + i) for i in range(count)]) for row in range(ROWS)]

    def micro_batches(self, step: int, rank: int, world_size: int) -> list[dict[str, Tensor]]:
        """The rows."""
        return self._rows

    def record_names(self, step: int) -> list[str]:
        """No records."""
        return []

    def _encoded(self, number: int) -> Encoded:
        """One sample: pictures, then words of which the last ones are supervised, then drawings."""
        config, draw = self._model.config, torch.Generator().manual_seed(number)
        pictures, drawings = (
            _whole(share, number) for share in (self._sample.pictures, self._sample.drawings)
        )
        words = torch.randint(16, 1000, (max(round(self._sample.words), 2),), generator=draw)
        labels = words.clone()
        labels[: -round(self._sample.targets)] = IGNORED
        seen = [config.image_token_id] * (pictures * config.num_vision_tokens)
        pads = [config.image_pad_token_id] * config.num_image_tokens
        drawn = [config.image_start_token_id, *pads, config.image_end_token_id] * drawings
        ignored = [torch.full((len(ids),), IGNORED) for ids in (seen, drawn)]
        ids = [torch.tensor(ids, dtype=torch.long) for ids in (seen, drawn)]
        tokenizer, side = config.image_tokenizer_config, config.vision_config.image_size
        codes = torch.randint(tokenizer.codebook_size, (drawings, config.num_image_tokens), generator=draw)
        size = tokenizer.image_size
        return Encoded(
            torch.cat([ids[0], words, ids[1]]),
            torch.cat([ignored[0], labels, ignored[1]]),
            torch.randn(pictures, 3, side, side, generator=draw),
            torch.rand(drawings if self._encodes else 0, 3, size, size, generator=draw) * 2 - 1,
            None if self._encodes or not drawings else codes,
        )


def _whole(share: float, number: int) -> int:
    """Whole numbers whose mean over `number` is `share`."""
    return int((number + 1) * share) - int(number * share)
