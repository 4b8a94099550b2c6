"""Published weights in small: as LLaVA, VAR and the released VARGPT lay them out."""

import json
from pathlib import Path

from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from training.backbones.import_weights import ImportChoices

GOLDEN = Path(__file__).parents[2] / "golden"
LLAVA_PARTS = ("vision_tower.", "language_model.", "multi_modal_projector.")


def weights_of(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}


def image_tokenizer_config(meta, weights):
    levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
    return {
        "scales": meta["scales"],
        "codebook_size": meta["codebook_size"],
        "latent_dim": meta["codebook_dim"],
        "channels": [weights[f"encoder.down.{level}.block.0.conv2.bias"].shape[0] for level in range(levels)],
        "num_refiners": sum(name.endswith(".bias") and "qresi_ls" in name for name in weights),
    }


def write_text_tokenizer(folder, size=300):
    words = ["<s>", "</s>", "<pad>", "<unk>", "USER", "ASSISTANT", ":"]
    words += [f"word{number}" for number in range(size - len(words))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)


def choices(preset, dtype="float32", **others):
    return ImportChoices(preset=preset, dtype=dtype, **others)


def report_of(folder):
    return json.loads((folder / "import_report.json").read_text())
