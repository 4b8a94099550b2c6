"""Hyper-parameters: params.yaml as frozen records; an unknown or missing key is refused by its path."""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType, get_args, get_origin, get_type_hints

import yaml

from training.precision import resolved

SIZES = ("tiny", "smoke")
# From 0 to 1.
Share = NewType("Share", float)


@dataclass(frozen=True)
class PrepareParams:
    """How much of each kind of data is made; how far training digits are turned, sheared and stretched, from
    0 to 1, where they are read and where they are drawn.
    """

    scenes: int
    scenes_drawn: int
    understanding: int
    drawing: int
    text: int
    validation: int
    test: int
    augment: Share
    augment_drawn: Share
    bad_record_share: Share


@dataclass(frozen=True)
class ScheduleParams:
    """Steps, samples of one step over all processes, peak learning rate, peak rate of matrices (under Muon;
    0: AdamW for all), warm-up steps, share of the peak that rates fall to, decay of the average.
    """

    steps: int
    batch: int
    lr: float
    muon_lr: float
    warmup: int
    end: Share
    ema: Share


@dataclass(frozen=True)
class TokenizerParams(ScheduleParams):
    """The codebook follows its members; entries without members are put elsewhere every so many steps."""

    codebook_decay: Share
    revive_every: int


@dataclass(frozen=True)
class VisionParams(ScheduleParams):
    """`random_colors`: share of pictures in colours outside the palette, to learn shapes by."""

    random_colors: Share


@dataclass(frozen=True)
class DecoderParams(ScheduleParams):
    """`drop`: share of pictures drawn from the null condition; `mistakes`: up to which share of the codes
    that a picture begins with are wrong; `softness`: how far beyond the nearest code others have a share
    in what is predicted.
    """

    drop: Share
    mistakes: Share
    softness: float


@dataclass(frozen=True)
class BackboneParams:
    """What is trained before stage 1, where a real run imports published weights."""

    tokenizer: TokenizerParams
    vision: VisionParams
    language: ScheduleParams
    decoder: DecoderParams


@dataclass(frozen=True)
class StageParams(ScheduleParams):
    """One stage: schedule, weights of the two losses, share of dropped prompts, `mistakes` and `softness` of
    drawings as for the decoder, and the mixture of data.

    `micro_batch` samples of similar length go through the model together; gradients of a step add up.
    """

    micro_batch: int
    checkpoint_every: int
    text_weight: float
    image_weight: float
    drop_prompt: Share
    mistakes: Share
    softness: float
    mixture: Mapping[str, float]


@dataclass(frozen=True)
class PromoteParams:
    """How much worse than the champion each metric may be, nested as in the metrics."""

    margins: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Params:
    """Everything that a run needs to know; `precision` is `bf16` (matrix products in bfloat16) or `no`: what
    `auto` means on this machine is decided where parameters are read.
    """

    size: str
    preset: str
    precision: str
    seed: int
    prepare: PrepareParams
    backbones: BackboneParams
    stage1: StageParams
    stage2: StageParams
    stage3: StageParams
    joint: StageParams
    promote: PromoteParams


def load_params(path: Path, size: str | None = None) -> Params:
    """Read params.yaml; `size` overrides the one in the file. ValueError names the key that is wrong."""
    if not path.is_file():
        raise ValueError(f"no parameters at {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(values).__name__}")
    smoke = values.pop("smoke", {})
    values["size"] = size or values.get("size")
    if values["size"] not in SIZES:
        raise ValueError(f"size must be one of {list(SIZES)}, got {values['size']!r}")
    if values["size"] == "smoke":
        values = _merged(values, smoke)
    params = _record(Params, values, "")
    return dataclasses.replace(params, precision=resolved(params.precision))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _record(kind: type, values: object, path: str) -> Any:
    """A frozen record of this kind from a mapping, every key in its place and of its type."""
    if not isinstance(values, dict):
        raise ValueError(f"{path or 'params'} must be a mapping, got {values!r}")
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(values.keys() - set(names)):
        raise ValueError(f"unknown parameter {path}{unknown[0]}; known: {', '.join(names)}")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"parameter {path}{missing[0]} is missing")
    return kind(**{name: _value(hints[name], values[name], path + name) for name in names})


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, path + ".")
    if get_origin(hint) is not None:
        if not isinstance(value, dict):
            raise ValueError(f"{path} must be a mapping, got {value!r}")
        inner = get_args(hint)[1]
        return types.MappingProxyType(
            {key: _value(inner, item, f"{path}.{key}") for key, item in value.items()}
        )
    if hint is Share:
        share = _value(float, value, path)
        if share > 1:
            raise ValueError(f"{path} must be from 0 to 1, got {value!r}")
        return share
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) or (hint in (int, float) and not value >= 0):
        raise ValueError(f"{path} must be {hint.__name__}, not negative, got {value!r}")
    return value


def plain(params: Any) -> Any:
    """The same as plain containers, for JSON and for tracking."""
    if dataclasses.is_dataclass(params):
        fields = dataclasses.fields(params)
        return {field.name: plain(getattr(params, field.name)) for field in fields}
    if isinstance(params, Mapping):
        return {key: plain(value) for key, value in params.items()}
    return params
