"""Published weights as one model: LLaVA-1.5, VAR and its image tokenizer, or a released VARGPT as it is.

Source: how VARGPT v1 is put together before its first stage, spec section 3. The generation projectors exist
in none of the three and begin as they are drawn from `SEED`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from model.checkpoint import save_model
from model.config import VargptConfig
from model.config import preset as preset_named
from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.published import decoder_weights, read_weights, tokenizer_weights, vargpt_weights
from model.text_tokenizer import IMAGE, IMAGE_END, IMAGE_PAD, IMAGE_START
from training.registry.lineage import imported_lineage, write_lineage

# Shape legend: R = classes and null, C = decoder width.

SEED = 0
RELEASED = "vargpt_gen."
CLASSES = "class_emb.weight"
# What transformers calls LLaVA's parts since version 4.52 -> what the published files call them.
_NEW_LAYOUT = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
_NEW_PARTS = ("generation_input_projector", "generation_output_projector")

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Source:
    """Published weights, what turns their names into ours, and the part of the model they are for."""

    path: Path
    weights: dict[str, Tensor]
    convert: Convert
    part: str = ""

    def converted(self) -> dict[str, Tensor]:
        """Our names in the whole model -> tensors."""
        return {self.part + name: tensor for name, tensor in self.convert(self.weights).items()}

    def origin(self, name: str) -> str:
        """The published key that one of our names comes from, and the file it lies in."""
        keys = list(self.weights)
        numbers = self.convert({key: torch.tensor([index]) for index, key in enumerate(keys)})
        key = keys[int(numbers[name.removeprefix(self.part)])]
        return f"{key} in {_file_of(self.path, key)}"


def import_weights(
    llava: Path,
    var: Path | None,
    tokenizer: Path | None,
    out: Path,
    preset: str = "7b",
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a model folder from published weights; the folder.

    Args:
        llava: Folder of safetensors and text tokenizer: LLaVA-1.5 as transformers lays it out, or a released
            VARGPT, which holds the other two already.
        var: The class-conditional decoder, a `.pth` of tensors; None for a released VARGPT.
        tokenizer: The image tokenizer, a `.pth` of tensors; None for a released VARGPT.
        dtype: What the weights are written as.

    Raises:
        ValueError: names the file and the key that is missing, unknown or of another shape.
    """
    config = preset_named(preset)
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder")
    processor = _processor(llava, config)
    config.null_prompt = processor.null_prompt()
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    for source in _sources(llava, var, tokenizer, config):
        _place(model, source, dtype)
    _begin_new_parts(model, dtype)
    _refuse_empty_places(model, llava)
    weights = save_model(model, processor, out)
    write_lineage(imported_lineage(filter(None, (llava, var, tokenizer)), weights), out)
    return out


def _sources(llava: Path, var: Path | None, tokenizer: Path | None, config: VargptConfig) -> list[Source]:
    language = _read(llava)
    language = {_old_name(name): tensor for name, tensor in language.items()}
    if any(name.startswith(RELEASED) for name in language):
        if var or tokenizer:
            raise UserError(
                f"{llava} is a whole VARGPT: give neither a decoder nor an image tokenizer with it"
            )
        return [Source(llava, language, vargpt_weights)]
    if not (var and tokenizer):
        raise UserError(f"{llava} is no whole VARGPT: a decoder and an image tokenizer are needed with it")
    decoder = _read(var)
    if CLASSES in decoder:
        decoder[CLASSES] = start_rows(decoder[CLASSES], config)
    return [
        Source(llava, language, vargpt_weights),
        Source(var, decoder, decoder_weights, "visual_decoder."),
        Source(tokenizer, _read(tokenizer), tokenizer_weights, "image_tokenizer."),
    ]


def start_rows(classes_RC: Tensor, config: VargptConfig) -> Tensor:
    """Start embedding from VAR's classes: null is VAR's null, an image opens with the average class.

    The other rows are never looked up; VARGPT has them because it numbers starts as it numbers tokens.
    """
    decoder = config.visual_decoder_config
    rows = classes_RC.new_zeros(decoder.num_starts, classes_RC.shape[1])
    rows[decoder.null_start] = classes_RC[-1]
    rows[decoder.image_start] = classes_RC[:-1].float().mean(0).to(rows.dtype)
    return rows


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_weights(path)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _old_name(name: str) -> str:
    for pattern, replacement in _NEW_LAYOUT:
        name = re.sub(pattern, replacement, name)
    return name


def _file_of(path: Path, key: str) -> Path:
    """The file of a folder that holds a key, under either of its names."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
        with safe_open(file, framework="pt") as opened:
            if any(_old_name(name) == key for name in opened.keys()):  # noqa: SIM118 - no dictionary
                return file
    return path


def _place(model: VargptForConditionalGeneration, source: Source, dtype: torch.dtype) -> None:
    """Put the weights of one source into the model; they are checked first."""
    own, weights = model.state_dict(), source.converted()
    for name, tensor in weights.items():
        if name not in own:
            raise UserError(f"{source.origin(name)} has no place in this architecture ({name})")
        if tensor.shape != own[name].shape:
            raise UserError(
                f"{source.origin(name)} is {tuple(tensor.shape)}, expected {tuple(own[name].shape)} ({name})"
            )
    _refuse_missing(own, weights, source)
    cast = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    model.load_state_dict(cast, strict=False, assign=True)


def _refuse_missing(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Source) -> None:
    """A source must fill every part that it begins to fill."""
    parts = {name.split(".")[0] for name in weights}
    missing = sorted(name for name in own.keys() - weights.keys() if name.split(".")[0] in parts)
    if missing:
        raise UserError(f"{source.path} lacks {len(missing)} weights, the first becomes {missing[0]}")


def _begin_new_parts(model: VargptForConditionalGeneration, dtype: torch.dtype) -> None:
    torch.manual_seed(SEED)
    for name in _NEW_PARTS:
        part = model.get_submodule(name)
        if any(parameter.is_meta for parameter in part.parameters()):
            part.to_empty(device="cpu")
            for module in part.modules():
                model._init_weights(module)
            part.to(dtype)


def _refuse_empty_places(model: VargptForConditionalGeneration, llava: Path) -> None:
    empty = sorted(name for name, tensor in model.state_dict().items() if tensor.is_meta)
    if empty:
        raise UserError(f"{llava} lacks {len(empty)} weights, the first becomes {empty[0]}")


def _processor(llava: Path, config: VargptConfig) -> VargptProcessor:
    """LLaVA's text tokenizer with the three words of drawing, under the ids that the model expects."""
    try:
        words: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(llava, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{llava} holds no text tokenizer that can be read: {error}") from error
    # The space before a drawing belongs to the drawing: it needs no token of its own.
    drawing = [
        AddedToken(word, special=True, normalized=False, lstrip=word == IMAGE_START)
        for word in (IMAGE_START, IMAGE_END, IMAGE_PAD)
    ]
    words.add_tokens(drawing, special_tokens=True)
    expected = {
        IMAGE: config.image_token_id,
        IMAGE_START: config.image_start_token_id,
        IMAGE_END: config.image_end_token_id,
        IMAGE_PAD: config.image_pad_token_id,
    }
    for word, number in expected.items():
        if (found := words.convert_tokens_to_ids(word)) != number:
            raise UserError(f"the text tokenizer of {llava} numbers {word} {found}, expected {number}")
    return VargptProcessor.for_config(config, words)
