"""Writes the prepared data: scenes in tar shards for the backbones, conversations in JSON for the stages."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from training.digits.records import (
    RecordWithImages,
    drawing_prompt_records,
    drawing_records,
    num_question_records,
    question_records,
    text_records,
    understanding_records,
)
from training.digits.scene_sampler import SceneSampler
from training.params import PrepareParams
from training.tracking.progress import progress_line

SCENES_PER_SHARD = 5000
NUM_VALIDATION_SCENES = 600
SUMMARY = "summary.json"

# Called after every record with the number of records written so far.
OnRecord = Callable[[int], None]


@dataclass(frozen=True)
class DatasetSummary:
    """Size and content of one prepared dataset: its records, and the SHA-256 of them and their images."""

    records: int
    sha256: str


@dataclass(frozen=True)
class PreparedDataset:
    """One dataset to write, a JSON file or a series of shards; `count` is its number of records."""

    name: str
    count: int
    write: Callable[[OnRecord], DatasetSummary]


def prepare(params: PrepareParams, seed: int, data_dir: Path, out: Path) -> dict[str, DatasetSummary]:
    """Write all prepared datasets below `out`; the same parameters and seed give the same bytes.

    Returns their summaries by name, which are also written to summary.json.
    """
    datasets = _datasets(params, seed, data_dir, out)
    summary = {}
    for number, dataset in enumerate(datasets, start=1):
        title = f"prepare {dataset.name} ({number} of {len(datasets)})"
        with progress_line(title, 0, dataset.count, unit="records") as line:
            summary[dataset.name] = dataset.write(lambda count, line=line: line.show(count, {}))
    content = {name: asdict(written) for name, written in summary.items()}
    (out / SUMMARY).write_text(json.dumps(content, indent=1) + "\n")
    return summary


def _datasets(params: PrepareParams, seed: int, data_dir: Path, out: Path) -> list[PreparedDataset]:
    train = SceneSampler(data_dir, "train", seed, params.augment)
    train_drawn = SceneSampler(data_dir, "train", seed, params.augment_drawn)
    validation = SceneSampler(data_dir, "validation", seed, augment=0.0)
    test = SceneSampler(data_dir, "test", seed, augment=0.0)

    def scenes(split: str, sampler: SceneSampler, count: int) -> PreparedDataset:
        return PreparedDataset(
            f"scenes/{split}",
            count,
            lambda on_record: _write_shards(sampler, out / "scenes", split, count, on_record),
        )

    def conversations(
        kind: str, split: str, count: int, records: Iterator[RecordWithImages]
    ) -> PreparedDataset:
        return PreparedDataset(
            f"{kind}/{split}", count, lambda on_record: _write_json(out / kind, split, records, on_record)
        )

    return [
        scenes("train", train, params.scenes),
        scenes("drawn", train_drawn, params.scenes_drawn),
        scenes("validation", validation, NUM_VALIDATION_SCENES),
        conversations(
            "understanding",
            "train",
            params.understanding,
            understanding_records(train, params.understanding),
        ),
        conversations(
            "understanding", "validation", num_question_records(validation), question_records(validation)
        ),
        conversations("understanding", "test", num_question_records(test), question_records(test)),
        conversations("drawing", "train", params.drawing, drawing_records(train_drawn, params.drawing)),
        conversations(
            "drawing",
            "validation",
            params.validation,
            drawing_prompt_records(validation, params.validation),
        ),
        conversations("drawing", "test", params.test, drawing_prompt_records(test, params.test)),
        conversations("text", "train", params.text, text_records(train, params.text)),
    ]


def _write_shards(
    sampler: SceneSampler, folder: Path, split: str, count: int, on_record: OnRecord
) -> DatasetSummary:
    """Write images with their attributes as tar shards in WebDataset's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for shard, first in enumerate(range(0, count, SCENES_PER_SHARD)):
        with tarfile.open(folder / f"{split}-{shard:05d}.tar", "w") as tar:
            for index in range(first, min(first + SCENES_PER_SHARD, count)):
                for name, content in _scene_files(sampler, split, index):
                    _add_member(tar, name, content)
                    digest.update(hashlib.sha256(content).digest())
                on_record(index + 1)
    return DatasetSummary(count, digest.hexdigest())


def _scene_files(sampler: SceneSampler, split: str, index: int) -> Iterator[tuple[str, bytes]]:
    rng = sampler.rng(f"{split}-scene", index)
    scene = sampler.sample_scene(rng)
    attributes = {**vars(scene), "caption": scene.caption}
    yield f"{index:06d}.png", sampler.render_png(scene, rng)
    yield f"{index:06d}.json", json.dumps(attributes).encode()


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _write_json(
    folder: Path, split: str, records: Iterator[RecordWithImages], on_record: OnRecord
) -> DatasetSummary:
    """Write a JSON list of records, and the images that they name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    digest, written = hashlib.sha256(), []
    for record, images in records:
        written.append(record)
        digest.update(json.dumps(record, sort_keys=True).encode())
        for name, content in images.items():
            (folder / name).write_bytes(content)
            digest.update(hashlib.sha256(content).digest())
        on_record(len(written))
    (folder / f"{split}.json").write_text(json.dumps(written) + "\n")
    return DatasetSummary(len(written), digest.hexdigest())
