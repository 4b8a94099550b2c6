"""Imports published weights as one model: LLaVA-1.5, VAR and its image tokenizer, or a released VARGPT.

Source: the released code of VARGPT v1 (arXiv:2501.12327), which assembles its model of the same three before
stage 1. None of them has the generation projectors, which start from random weights, seeded by `SEED`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
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
# Prefix of the visual decoder in a released VARGPT, which LLaVA does not have.
RELEASED_PREFIX = "vargpt_gen."
# VAR's class embedding.
CLASS_EMBEDDING = "class_emb.weight"
# Key prefixes of LLaVA since transformers 4.52 -> those of the published files.
_NEW_PREFIXES = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
_GENERATION_PROJECTORS = ("generation_input_projector", "generation_output_projector")

# Published weights -> the same under our names.
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class WeightSource:
    """Published weights of one file or folder, and how they map to our model.

    Args:
        prefix: Of the module of our model that they belong to, with a dot; empty for the whole model.
    """

    path: Path
    weights: dict[str, Tensor]
    convert: Convert
    prefix: str = ""

    def converted(self) -> dict[str, Tensor]:
        """The weights under our names, with the prefix."""
        return {self.prefix + name: tensor for name, tensor in self.convert(self.weights).items()}

    def origin(self, name: str) -> str:
        """The published key and the file that a weight of our model comes from, for error messages."""
        keys = list(self.weights)
        # Convert indices of keys in place of weights, to see which key becomes which name.
        indices = self.convert({key: torch.tensor([index]) for index, key in enumerate(keys)})
        key = keys[int(indices[name.removeprefix(self.prefix)])]
        return f"{key} in {_file_of(self.path, key)}"


def import_weights(
    llava: Path,
    var: Path | None,
    tokenizer: Path | None,
    out: Path,
    preset: str = "7b",
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a model folder from published weights; returns the folder.

    Args:
        llava: Folder with safetensors and text tokenizer of LLaVA-1.5 in transformers' layout, or of a
            released VARGPT, which includes the other two.
        var: `.pth` file of VAR, the visual decoder; None for a released VARGPT.
        tokenizer: `.pth` file of VAR's image tokenizer; None for a released VARGPT.
        dtype: Of the written weights.

    Raises:
        UserError: names the file and the key that is missing, unknown or of another shape.
    """
    config = preset_named(preset)
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder")
    processor = _processor(llava, config)
    config.null_prompt = processor.null_prompt()
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    for source in _sources(llava, var, tokenizer, config):
        _load_source(model, source, dtype)
    _initialize_projectors(model, dtype)
    _refuse_missing_weights(model, llava)
    weights_sha256 = save_model(model, processor, out)
    write_lineage(imported_lineage(filter(None, (llava, var, tokenizer)), weights_sha256), out)
    return out


def _sources(
    llava: Path, var: Path | None, tokenizer: Path | None, config: VargptConfig
) -> list[WeightSource]:
    language = {_published_name(name): tensor for name, tensor in read_weights(llava).items()}
    if any(name.startswith(RELEASED_PREFIX) for name in language):
        if var or tokenizer:
            raise UserError(
                f"{llava} is a whole VARGPT: give neither a decoder nor an image tokenizer with it"
            )
        return [WeightSource(llava, language, vargpt_weights)]
    if not (var and tokenizer):
        raise UserError(f"{llava} is no whole VARGPT: a decoder and an image tokenizer are needed with it")
    decoder = read_weights(var)
    if CLASS_EMBEDDING in decoder:
        decoder[CLASS_EMBEDDING] = start_embedding_of(decoder[CLASS_EMBEDDING], config)
    return [
        WeightSource(llava, language, vargpt_weights),
        WeightSource(var, decoder, decoder_weights, "visual_decoder."),
        WeightSource(tokenizer, read_weights(tokenizer), tokenizer_weights, "image_tokenizer."),
    ]


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


def _published_name(name: str) -> str:
    for pattern, replacement in _NEW_PREFIXES:
        name = re.sub(pattern, replacement, name)
    return name


def _file_of(path: Path, key: str) -> Path:
    """The file in a folder that has a key, under its published or its newer name."""
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else ():
        with safe_open(file, framework="pt") as opened:
            if any(_published_name(name) == key for name in opened.keys()):  # noqa: SIM118 - no dictionary
                return file
    return path


def _load_source(model: VargptForConditionalGeneration, source: WeightSource, dtype: torch.dtype) -> None:
    """Load the weights of one source into the model, after checking names and shapes."""
    expected, weights = model.state_dict(), source.converted()
    for name, tensor in weights.items():
        if name not in expected:
            raise UserError(f"{source.origin(name)} has no place in this architecture ({name})")
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise UserError(f"{source.origin(name)} is {shapes} ({name})")
    _refuse_incomplete(expected, weights, source)
    cast = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    model.load_state_dict(cast, strict=False, assign=True)


def _refuse_incomplete(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: WeightSource
) -> None:
    """Raise UserError when a source has only some of the weights of a module."""
    modules = {name.split(".")[0] for name in weights}
    missing = sorted(name for name in expected.keys() - weights.keys() if name.split(".")[0] in modules)
    if missing:
        raise UserError(f"{source.path} lacks {len(missing)} weights, the first becomes {missing[0]}")


def _initialize_projectors(model: VargptForConditionalGeneration, dtype: torch.dtype) -> None:
    """Give the generation projectors random weights, unless they were loaded."""
    torch.manual_seed(SEED)
    for name in _GENERATION_PROJECTORS:
        projector = model.get_submodule(name)
        if any(parameter.is_meta for parameter in projector.parameters()):
            projector.to_empty(device="cpu")
            for module in projector.modules():
                model._init_weights(module)
            projector.to(dtype)


def _refuse_missing_weights(model: VargptForConditionalGeneration, llava: Path) -> None:
    missing = sorted(name for name, tensor in model.state_dict().items() if tensor.is_meta)
    if missing:
        raise UserError(f"{llava} lacks {len(missing)} weights, the first becomes {missing[0]}")


def _processor(llava: Path, config: VargptConfig) -> VargptProcessor:
    """A processor with LLaVA's text tokenizer plus the tokens of drawings, with the ids of the config."""
    try:
        text_tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(llava, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{llava} holds no text tokenizer that can be read: {error}") from error
    # The space before a drawing is part of its start token.
    drawing_tokens = [
        AddedToken(token, special=True, normalized=False, lstrip=token == IMAGE_START)
        for token in (IMAGE_START, IMAGE_END, IMAGE_PAD)
    ]
    text_tokenizer.add_tokens(drawing_tokens, special_tokens=True)
    expected_ids = {
        IMAGE: config.image_token_id,
        IMAGE_START: config.image_start_token_id,
        IMAGE_END: config.image_end_token_id,
        IMAGE_PAD: config.image_pad_token_id,
    }
    for token, expected in expected_ids.items():
        if (found := text_tokenizer.convert_tokens_to_ids(token)) != expected:
            raise UserError(f"the text tokenizer of {llava} numbers {token} {found}, expected {expected}")
    return VargptProcessor.for_config(config, text_tokenizer)
