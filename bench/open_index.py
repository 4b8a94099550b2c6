"""How long training waits for its data: opening an index of millions of records, and the first step from it.

    python -m bench.open_index --records 2000000 --folder /tmp/index

Records of conversations with one picture are written and checked by the real code, some thousands of them;
their index is then repeated until it has as many records, pieces and digests as a big dataset's. A fresh
process opens it.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.timing import positive_int, report
from model.config import preset
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.dataset_index import piece_path
from training.data.prepared_data import DataFolders, index_datasets, open_mixture
from training.params import DatasetParams, load_params

CHECKED = 2000
RESUME_AT = 1000
WORDS = [
    "what",
    "is",
    "in",
    "the",
    "picture",
    "and",
    "where",
    "does",
    "it",
    "stand",
    "beside",
    "the",
    "other",
    "things",
    "that",
    "can",
    "be",
    "seen",
    "there",
]
DATASET = DatasetParams(name="synthetic", path="set/train.json", weight=1.0)


def _processor() -> VargptProcessor:
    config = preset("tiny")
    return VargptProcessor.for_config(config, build_text_tokenizer([" ".join(WORDS)], config))


def _write_records(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for number in range(CHECKED):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
        words = [str(word) for word in rng.choice(WORDS, int(rng.integers(10, 80)))]
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": " ".join(words)}]
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "train.json").write_text(json.dumps(records))


def _repeat(index: Path, times: int) -> None:
    """Make an index of one piece one of many equal pieces, with files of their own."""
    for number in range(1, times):
        shutil.copyfile(piece_path(index, 0, "records"), piece_path(index, number, "records"))
    table, digests = np.load(index / "table.npy"), np.load(index / "digests.npy")
    tables = np.tile(table, times)
    tables["piece"] = np.repeat(np.arange(times), len(table))
    tables["first_picture"] += np.repeat(np.arange(times), len(table)).astype(np.uint64) * len(digests)
    np.save(index / "table.npy", tables)
    np.save(index / "digests.npy", np.tile(digests, (times, 1)))


def make(root: Path, records: int, workers: int) -> dict[str, float]:
    """Write the index; how quickly records were checked."""
    _write_records(root / "set")
    folders = DataFolders(root, root / "index")
    start, began = time.perf_counter(), time.process_time()
    [index] = index_datasets([DATASET], folders, _processor(), workers, 0.0).values()
    seconds, busy = time.perf_counter() - start, time.process_time() - began
    _repeat(index.folder, max(records // CHECKED, 1))
    rates = {"checked_records_per_second": CHECKED / seconds}
    return rates | ({"checked_records_per_processor_second": CHECKED / busy} if workers == 1 else {})


def measure(root: Path) -> dict[str, Any]:
    """Open the index, load the first step of one rank of eight, and go on far behind it."""
    params = load_params(Path("params.yaml"), "7b")
    stage = params.stage2.model_copy(update={"max_tokens": 512, "loader_workers": 0, "cached_codes": False})
    processor, config = _processor(), preset("tiny")
    began, start = time.process_time(), time.perf_counter()
    mixture = open_mixture(
        [DATASET], DataFolders(root, root / "index"), params.data.held_out, params.seed, BadRecordLog()
    )
    loader = BatchLoader(
        mixture, processor, config.image_tokenizer_config, stage, params.seed, BadRecordLog(), 0.0
    )
    opened = time.perf_counter()
    loader.micro_batches(0, 0, 8)
    first, busy = time.perf_counter(), time.process_time() - began
    loader.micro_batches(RESUME_AT, 0, 8)
    resumed = time.perf_counter()
    return {
        "records": len(mixture.datasets[0]),
        "open_seconds": opened - start,
        "first_step_seconds": first - opened,
        "resume_seconds": resumed - first,
        "data_work_until_first_step_seconds": first - start,
        # On a machine that others use too, this is what an idle one would take.
        "processor_seconds_until_first_step": busy,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Make the index, then measure in a process of its own, as training starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=positive_int, default=2_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder; 1 GB for 2 million records")
    parser.add_argument("--workers", type=positive_int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    parser.add_argument("--open-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open_only:
        sys.stdout.write(json.dumps(measure(options.folder)))
        return
    made = make(options.folder, options.records, options.workers)
    command = [sys.executable, "-m", "bench.open_index", "--folder", str(options.folder), "--open-only"]
    measured = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report({**made, **json.loads(measured)}, options.out)


if __name__ == "__main__":
    main()
