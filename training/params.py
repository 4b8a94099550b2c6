"""Hyper-parameters: params.yaml as frozen pydantic models; errors name a wrong key or value by its path.

`params_file` makes a JSON schema of these models, for editors, and the values of one size, for the pipeline.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.errors import UserError
from training.precision import resolved
from training.yaml_core import parse_yaml

SIZES = ("tiny", "smoke", "7b")
# Sections of the file that hold other values for a size, merged over the rest.
OVERRIDES = ("smoke", "7b")
# Values that hold for every stage that does not say otherwise.
STAGE_DEFAULTS = "stage_defaults"
STAGES = ("stage1", "stage2", "stage3", "joint")

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Frozen; unknown keys, missing keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class PrepareParams(Section):
    """Sizes of the prepared datasets, and augmentation of their images."""

    scenes: Count = Field(description="scenes for training the vision tower")
    scenes_drawn: Count = Field(description="scenes for training image tokenizer and visual decoder")
    understanding: Count = Field(description="conversations about an image")
    drawing: Count = Field(description="drawing requests with their drawings")
    text: Count = Field(description="conversations without images")
    validation: Count = Field(description="drawing prompts of the validation split")
    test: Count = Field(description="drawing prompts of the test split")
    augment: Fraction = Field(description="how far digits of input images are rotated, sheared and stretched")
    augment_drawn: Fraction = Field(description="the same for images that are drawn")


class DataParams(Section):
    """How datasets are checked before training."""

    bad_record_share: Fraction = Field(description="share of bad records above which a dataset is refused")
    held_out: Fraction = Field(description="share of each dataset that is never trained on, for validation")
    workers: Count = Field(description="processes that check and encode data; 0: one for each core")


class WeightsParams(Section):
    """Published weights that stage 1 starts from; with none, backbones are trained from nothing."""

    vargpt: str | None = Field(description="folder of a released VARGPT, instead of the other three")
    llava: str | None = Field(description="folder of LLaVA-1.5: language model, vision tower, projector")
    var: str | None = Field(description="file or folder of a class-conditional VAR")
    tokenizer: str | None = Field(description="file or folder of VAR's image tokenizer")


class OptimizerParams(Section):
    """AdamW and gradient clipping, the same for every training."""

    weight_decay: NonNegative = Field(description="of matrices; none for biases, norms and positions")
    beta1: Fraction = Field(description="decay of the first moment")
    beta2: Fraction = Field(description="decay of the second moment")
    clip_norm: PositiveFloat = Field(description="gradients are clipped to this norm")


class ScheduleParams(Section):
    """Length, batch size and learning rates of one training."""

    steps: Count = Field(description="optimizer steps")
    batch: Positive = Field(description="samples per step, over all processes")
    lr: NonNegative = Field(description="peak learning rate")
    muon_lr: NonNegative = Field(
        description="peak learning rate of weight matrices under Muon; 0: AdamW for all"
    )
    warmup: Count = Field(description="steps of linear warm-up")
    end: Fraction = Field(description="final learning rate, as a share of the peak")
    ema: Fraction = Field(description="decay of the exponential moving average of weights")


class TokenizerParams(ScheduleParams):
    """The image tokenizer; its codebook is updated by exponential moving averages."""

    codebook_decay: Fraction = Field(description="decay of these averages")
    revive_every: Positive = Field(description="steps between two revivals of dead codebook entries")


class VisionParams(ScheduleParams):
    """The vision tower."""

    random_colors: Fraction = Field(description="share of a batch that is shown in random colours")


class DecoderParams(ScheduleParams):
    """The class-conditional visual decoder."""

    drop: Fraction = Field(description="share of samples with the null class, for guidance")
    code_corruption: Fraction = Field(description="largest share of image codes replaced at random")
    softness: NonNegative = Field(description="spread of soft targets over near codes; 0: one-hot targets")


class BackboneParams(Section):
    """The backbones of `tiny`, trained before stage 1; those of `7b` are imported."""

    tokenizer: TokenizerParams
    vision: VisionParams
    language: ScheduleParams
    decoder: DecoderParams


class DatasetParams(Section):
    """One dataset of a mixture, in any layout that training/data/readers.py knows."""

    name: str = Field(description="by which bad records and metrics call it")
    path: str = Field(description="file, folder or pattern of files")
    image_root: str | None = Field(
        default=None, description="where relative image paths start; default: path"
    )
    weight: NonNegative = Field(description="sampling weight within the mixture")


# Never has an adapter, as in peft: its loss is computed from its weight, chunk by chunk.
NO_ADAPTER = "lm_head"


class LoraParams(Section):
    """Low-rank adapters in place of the weights of a stage's linear maps (arXiv:2106.09685)."""

    rank: Positive
    alpha: PositiveFloat = Field(description="adapters are scaled by alpha / rank")
    dropout: Fraction
    modules: list[str] = Field(description="paths of modules whose linear maps get adapters")


class StageParams(ScheduleParams):
    """One stage, or `joint`."""

    engine: Literal["ddp", "zero1", "zero2", "zero3"] = Field(
        description="what processes share: ddp nothing, ZeRO-1 states, 2 gradients too, 3 weights too"
    )
    offload: bool = Field(description="keep optimizer states in host memory (ZeRO only)")
    checkpoint_activations: bool = Field(description="recompute activations in the backward pass")
    compile: bool = Field(description="compile each block with torch.compile")
    pack_tokens: Count = Field(description="pack samples into sequences of this length; 0: pad micro-batches")
    cached_codes: bool = Field(description="read codes of drawn images from `vargpt data encode`, not pixels")
    loader_workers: Count = Field(
        description="processes that decode samples ahead; 0: in the training process"
    )
    lora: LoraParams | None
    validate_every: Count = Field(description="steps between two validation losses; 0: none")
    keep_checkpoints: Positive = Field(description="newest checkpoints that are kept")

    micro_batch: Positive = Field(description="samples per forward pass; gradients are accumulated")
    checkpoint_every: Positive = Field(description="steps between two checkpoints")
    max_tokens: Positive = Field(description="length of the longest sample; longer ones are bad records")
    max_skipped: Count = Field(description="steps in a row with a non-finite gradient that are skipped")
    text_weight: NonNegative = Field(description="weight of the loss of text tokens")
    image_weight: NonNegative = Field(description="weight of the loss of image tokens")
    drop_prompt: Fraction = Field(
        description="share of single drawings whose prompt is emptied, for guidance"
    )
    code_corruption: Fraction = Field(description="largest share of image codes replaced at random")
    softness: NonNegative = Field(description="spread of soft targets over near codes; 0: one-hot targets")
    mixture: list[DatasetParams] = Field(description="datasets, sampled by weight")


class PromoteParams(Section):
    """Conditions for promotion to champion, by metric as in metrics/evaluate.json."""

    margins: dict[str, dict[str, float] | float | None] = Field(
        description="how much worse than the best champion so far it may be; null: not asked for"
    )
    floors: dict[str, dict[str, float] | float | None] = Field(
        description="least value, whatever the champion has; null: none"
    )


class ClusterParams(Section):
    """What a stage's job asks of a Kubernetes cluster; none of it changes what is learned."""

    nodes: Positive = Field(description="workers of a stage, one pod each")
    min_nodes: Positive = Field(description="workers with which training goes on when others are lost")
    gpus: Count = Field(description="GPUs, and processes, of a worker; 0: one process on the CPU")
    cpu: PositiveFloat = Field(description="cores that a process asks for")
    memory_gib: Positive = Field(description="memory that a process asks for, that of /dev/shm included")
    memory_limit_gib: Positive = Field(description="memory of a process above which its pod is killed")
    shm_gib: Positive = Field(description="size of a worker's /dev/shm")
    scratch_gib: Positive = Field(description="size of a worker's /tmp")
    save_seconds: Positive = Field(description="for the longest step and checkpoint, after a signal to stop")
    deadline_hours: Positive = Field(description="after which a job is ended, whatever it does")


class Params(Section):
    """All parameters of the pipeline."""

    size: str = Field(json_schema_extra={"enum": list(SIZES)}, description="amount of data and training")
    preset: str = Field(description="architecture, in model/config.py")
    precision: str = Field(description="of matrix products in training: bf16, no (float32), or auto")
    seed: Count = Field(description="of data, weights and sampling")
    prepare: PrepareParams
    data: DataParams
    weights: WeightsParams
    optimizer: OptimizerParams
    backbones: BackboneParams
    stage1: StageParams
    stage2: StageParams
    stage3: StageParams
    joint: StageParams
    promote: PromoteParams
    launcher: Literal["local", "kubernetes"] = Field(
        description="where stages run: as processes of this machine, or as jobs of a cluster"
    )
    processes: Literal["auto"] | Positive = Field(
        description="of a stage on this machine; auto is one for each GPU, or one"
    )
    cluster: ClusterParams


def load_params(path: Path, size: str | None = None) -> Params:
    """Read params.yaml; `size` overrides the one in the file.

    `precision: auto` is decided here, for this machine. UserError names the key that is wrong.
    """
    if not path.is_file():
        raise UserError(f"no parameters at {path}")
    params = parse_params(values_for_size(path.read_text(encoding="utf-8"), size, str(path)))
    return params.model_copy(update={"precision": resolved(params.precision)})


def values_for_size(text: str, size: str | None, name: str) -> dict[str, Any]:
    """The values in the text of a params.yaml with those of a size merged over them, not checked further.

    Args:
        name: What a UserError calls the text.
    """
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{name} must hold a mapping, got {type(values).__name__}")
    overrides = {key: values.pop(key, {}) for key in OVERRIDES}
    values["size"] = size or values.get("size")
    if values["size"] not in SIZES:
        raise UserError(f"size must be one of {list(SIZES)}, got {values['size']!r}")
    values = _merged(values, overrides.get(values["size"], {}))
    defaults = values.pop(STAGE_DEFAULTS, {})
    return values | {
        name: _merged(defaults, values[name]) for name in STAGES if isinstance(values.get(name), dict)
    }


def parse_params(values: dict[str, Any]) -> Params:
    """Check values of one size. UserError names the first key that is wrong."""
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A misspelt key is also missing: that it is unknown says more.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise UserError(_explained(faults[0])) from None


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _explained(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown parameter {path}; known: {', '.join(_fields_beside(fault['loc']))}"
    if fault["type"] == "missing":
        return f"parameter {path} is missing"
    return f"{path}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {fault['input']!r}"


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section that holds what lies at a location."""
    section: Any = Params
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
