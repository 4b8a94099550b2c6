"""What ways of feeding training are worth, with a middle-sized model on the CPU: packing, codes, loader.

python -m bench.train_data --out data.json

Lengths follow the ten sources of LLaVA's 665 K mix. Its annotations are not at hand here: counts of its
sources, medians and spreads of their text are estimates. Seconds are those of one thread's processor, so that
others on the machine do not count; lengths are divided by eight, as the model is small.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import LlamaConfig

from bench.timing import machine, positive_int, report
from model.backbones import LanguageModel
from model.batches import pad
from model.config import VargptConfig
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from model.training_attention import training_attention
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.code_cache import CodeCache
from training.data.code_encoding import encode_pictures
from training.data.packing import pack
from training.data.prepared_data import DataFolders, index_datasets, open_mixture
from training.params import DatasetParams, load_params
from training.stages.stage_table import freeze_for, stage_named

# Records in thousands, median of text tokens, spread of its logarithm, whether there is a picture.
LLAVA_665K = (
    (158, 250, 0.5, True),  # LLaVA's own conversations, descriptions and reasoning
    (40, 900, 0.8, False),  # ShareGPT
    (83, 160, 0.5, True),  # VQAv2
    (72, 230, 0.5, True),  # GQA
    (9, 90, 0.3, True),  # OK-VQA
    (80, 150, 0.2, True),  # OCR-VQA
    (66, 110, 0.2, True),  # A-OKVQA
    (22, 60, 0.2, True),  # TextCaps
    (48, 250, 0.6, True),  # RefCOCO
    (86, 250, 0.6, True),  # Visual Genome
)
PICTURE_TOKENS, MAX_TOKENS, PACK_TOKENS, SCALE = 576, 2048, 4096, 8
MICRO_BATCHES = (8, 16, 32)
NUM_PICTURES = 48
STAGES = ("stage1", "stage3")
# How much is measured unless the command line says otherwise.
PACKED_SAMPLES, TIMED_STEPS = 512, 5


def lengths_of_llava(count: int) -> list[int]:
    """Lengths of random samples of the mix, in positions of 7b."""
    rng = np.random.default_rng(0)
    sizes = np.array([source[0] for source in LLAVA_665K], float)
    _, medians, spreads, pictures = map(np.array, zip(*LLAVA_665K, strict=True))
    sources = rng.choice(len(sizes), count, p=sizes / sizes.sum())
    text = medians[sources] * np.exp(spreads[sources] * rng.standard_normal(count))
    return np.clip(text + PICTURE_TOKENS * pictures[sources], 8, MAX_TOKENS).astype(int).tolist()


def measure_packing(samples: int) -> dict[str, Any]:
    """Samples in micro-batches in random order, sorted by length, and packed."""
    lengths = lengths_of_llava(samples)
    ways = {f"random_{size}": _cut(lengths, size) for size in MICRO_BATCHES}
    ways["sorted"] = _cut(sorted(lengths), MICRO_BATCHES[0])
    ways["packed"] = [[lengths[p] for p in row] for row in pack(lengths, PACK_TOKENS)]
    computed = {
        name: sum(sum(row) if name == "packed" else len(row) * max(row) for row in rows)
        for name, rows in ways.items()
    }
    seconds = {name: _seconds_of_rows(rows, name == "packed") for name, rows in ways.items()}
    rows_of_size = -(-sum(lengths) // PACK_TOKENS)
    return {
        "mean_length": sum(lengths) / len(lengths),
        "filled": {name: sum(lengths) / total for name, total in computed.items()},
        "rows_over_least_possible": len(ways["packed"]) / rows_of_size,
        "tokens_per_second": {name: sum(lengths) / SCALE / spent for name, spent in seconds.items()},
        "positions_over_packed": {name: total / computed["packed"] for name, total in computed.items()},
        "gain_over": {name: spent / seconds["packed"] for name, spent in seconds.items()},
    }


def _cut(lengths: Sequence[int], size: int) -> list[list[int]]:
    return [list(lengths[first : first + size]) for first in range(0, len(lengths), size)]


def _seconds_of_rows(rows: Sequence[Sequence[int]], is_packed: bool) -> float:
    """Seconds of forward and backward passes over all micro-batches, lengths divided by SCALE."""
    torch.manual_seed(0)
    model = LanguageModel(
        LlamaConfig(
            vocab_size=384,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=3,
            num_attention_heads=6,
        )
    )
    start = time.process_time()
    with training_attention(model, "no"):
        for row in rows:
            positions = [torch.arange(max(length // SCALE, 1)) for length in row]
            arguments = (
                {"position_ids": torch.cat(positions)[None]}
                if is_packed
                else {"attention_mask": pad([torch.ones_like(some) for some in positions], 0)}
            )
            [shape] = {value.shape for value in arguments.values()}
            model.states(torch.randn(*shape, 384), use_cache=False, **arguments).square().mean().backward()
    return time.process_time() - start


def middle_config() -> VargptConfig:
    """Proportions of 7b, a tenth of its width; pictures of 64 pixels."""
    return VargptConfig(
        vision_config=dict(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
        ),
        text_config=dict(
            hidden_size=416,
            intermediate_size=1088,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=1024,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        image_tokenizer_config=dict(scales=(1, 2, 3, 4, 6, 8), channels=(32, 32, 64, 64), codebook_size=512),
        visual_decoder_config=dict(depth=6, width=192, num_heads=3, num_starts=320, drop_path=0.0),
        image_token_id=3,
        image_start_token_id=4,
        image_end_token_id=5,
        image_pad_token_id=6,
    )


def measure_codes_and_loader(folder: Path, steps: int) -> dict[str, Any]:
    """Steps of stages 1 and 3 from pixels and from cached codes, and how quickly the loader makes them."""
    torch.manual_seed(0)
    config = middle_config()
    processor = VargptProcessor.for_config(config, build_text_tokenizer(["Draw a picture"], config))
    model = VargptForConditionalGeneration(config)
    params = load_params(Path("params.yaml"), "smoke").stage3.model_copy(
        update={"batch": 8, "micro_batch": 8, "code_corruption": 0.0, "softness": 0.0, "steps": 1_000_000}
    )
    dataset = _write_pictures(folder)
    folders = DataFolders(folder, folder / "index")
    index_datasets([dataset], folders, processor, 1, 0.0)
    mixture = open_mixture([dataset], folders, 0.0, 0, BadRecordLog())
    cache, count = encode_pictures(
        mixture.datasets, model.image_tokenizer.eval(), processor, folder / "codes"
    )
    assert count == NUM_PICTURES

    def loader(codes: CodeCache | None) -> BatchLoader:
        tokenizer = config.image_tokenizer_config
        return BatchLoader(mixture, processor, tokenizer, params, 0, BadRecordLog(), 0.0, codes)

    measured: dict[str, Any] = {}
    loaders = {"pixels": loader(None), "codes": loader(CodeCache(cache))}
    for name, one in loaders.items():
        # As with a big dataset, nothing is kept in memory.
        one._batches.encoder._cache_bytes = 1 << 40
        measured[f"loaded_samples_per_second_{name}"] = (
            params.batch * steps / _seconds(lambda step, one=one: one.micro_batches(step), steps)
        )
    for stage in STAGES:
        freeze_for(model, stage_named(stage))
        batches = {name: one.micro_batches(0)[0] for name, one in loaders.items()}
        spent = {
            name: _seconds(lambda _, batch=batch: _learn(model, batch), steps)
            for name, batch in batches.items()
        }
        measured[f"{stage}_seconds_per_step"] = {name: value / steps for name, value in spent.items()}
        measured[f"{stage}_gain_of_codes"] = spent["pixels"] / spent["codes"]
        measured[f"{stage}_loader_over_consumption"] = {
            name: measured[f"loaded_samples_per_second_{name}"] * value / steps / params.batch
            for name, value in spent.items()
        }
    return measured


def _write_pictures(folder: Path) -> DatasetParams:
    rng = np.random.default_rng(0)
    records = []
    (folder / "set").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        # The usual size of a picture of ImageNet.
        small = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375)).save(folder / "set" / f"{number}.jpg", quality=90)
        turns = [
            {"role": "user", "content": f"Draw {number}"},
            {"role": "assistant", "content": "<image_gen>"},
        ]
        records.append({"messages": turns, "images": [f"{number}.jpg"]})
    (folder / "set" / "train.json").write_text(json.dumps(records))
    return DatasetParams(name="pictures", path="set/train.json", weight=1.0)


def _learn(model: VargptForConditionalGeneration, batch: dict[str, torch.Tensor]) -> None:
    sums = model.loss_sums(**batch, text="measured")
    sums.image_by_scale.sum().backward()


def _seconds(action: Callable[[int], object], times: int) -> float:
    action(0)
    start = time.process_time()
    for number in range(1, times + 1):
        action(number)
    return time.process_time() - start


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--samples", type=positive_int, default=PACKED_SAMPLES, help="samples that are packed"
    )
    parser.add_argument("--steps", type=positive_int, default=TIMED_STEPS, help="steps that are timed")
    parser.add_argument("--threads", type=positive_int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        measured = {
            "machine": machine("cpu"),
            "packing": measure_packing(options.samples),
            "codes": measure_codes_and_loader(Path(folder), options.steps),
        }
    report(measured, options.out)


if __name__ == "__main__":
    main()
