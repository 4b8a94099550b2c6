"""The prepared data: scenes and conversations from real scans, in the layouts of published data sets."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from training.digits.records import Records, drawing_prompts, drawings, probes, texts, understanding
from training.digits.scene_renderer import SceneRenderer
from training.params import PrepareParams
from training.tracking.progress import progress_line

SHARD_SIZE = 5000
VALIDATION_SCENES = 600
SUMMARY = "summary.json"

# Called with how many records are written.
OnRecord = Callable[[int], None]


@dataclass(frozen=True)
class Written:
    """What one prepared file holds: records, and the SHA-256 of them and of their pictures."""

    records: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One file, or series of shards, to be written, and how many records it will have, as far as known."""

    name: str
    count: int | None
    write: Callable[[OnRecord], Written]


def prepare(params: PrepareParams, seed: int, data_dir: Path, out: Path) -> dict[str, Written]:
    """Write every prepared file below `out`; the same parameters give the same bytes.

    Returns what was written by name, which summary.json tells, too.
    """
    parts = _parts(params, seed, data_dir, out)
    summary = {}
    for number, part in enumerate(parts, start=1):
        title = f"prepare {part.name} ({number} of {len(parts)})"
        with progress_line(title, 0, part.count, unit="records") as line:
            summary[part.name] = part.write(lambda done, line=line: line.show(done, {}))
    content = {name: asdict(written) for name, written in summary.items()}
    (out / SUMMARY).write_text(json.dumps(content, indent=1) + "\n")
    return summary


def _parts(params: PrepareParams, seed: int, data_dir: Path, out: Path) -> list[Part]:
    train = SceneRenderer(data_dir, "train", seed, params.augment)
    drawn = SceneRenderer(data_dir, "train", seed, params.augment_drawn)
    validation = SceneRenderer(data_dir, "validation", seed, 0.0)
    test = SceneRenderer(data_dir, "test", seed, 0.0)

    def scenes(split: str, renderer: SceneRenderer, count: int) -> Part:
        return Part(
            f"scenes/{split}", count, lambda on: write_shards(renderer, out / "scenes", split, count, on)
        )

    def conversations(kind: str, split: str, count: int | None, records: Records) -> Part:
        return Part(f"{kind}/{split}", count, lambda on: _write_json(out / kind, split, records, on))

    return [
        scenes("train", train, params.scenes),
        scenes("drawn", drawn, params.scenes_drawn),
        scenes("validation", validation, VALIDATION_SCENES),
        conversations("understanding", "train", params.understanding, understanding(train, params)),
        conversations("understanding", "validation", None, probes(validation)),
        conversations("understanding", "test", None, probes(test)),
        conversations("drawing", "train", params.drawing, drawings(drawn, params.drawing)),
        conversations(
            "drawing", "validation", params.validation, drawing_prompts(validation, params.validation)
        ),
        conversations("drawing", "test", params.test, drawing_prompts(test, params.test)),
        conversations("text", "train", params.text, texts(train, params.text)),
    ]


def write_shards(
    renderer: SceneRenderer, folder: Path, split: str, count: int, on_record: OnRecord = lambda done: None
) -> Written:
    """Tar shards of pictures with their attributes, for the backbones."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for shard, first in enumerate(range(0, count, SHARD_SIZE)):
        with tarfile.open(folder / f"{split}-{shard:05d}.tar", "w") as tar:
            for index in range(first, min(first + SHARD_SIZE, count)):
                for name, content in _scene_files(renderer, split, index):
                    _add(tar, name, content)
                    digest.update(hashlib.sha256(content).digest())
                on_record(index + 1)
    return Written(count, digest.hexdigest())


def _scene_files(renderer: SceneRenderer, split: str, index: int) -> Iterator[tuple[str, bytes]]:
    rng = renderer.rng(f"{split}-scene", index)
    scene = renderer.scene(rng)
    facts = {**vars(scene), "caption": scene.caption}
    yield f"{index:06d}.png", renderer.png(scene, rng)
    yield f"{index:06d}.json", json.dumps(facts).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _write_json(folder: Path, split: str, records: Records, on_record: OnRecord) -> Written:
    """A JSON list, and the pictures that its records name."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    digest, kept = hashlib.sha256(), []
    for record, pictures in records:
        kept.append(record)
        digest.update(json.dumps(record, sort_keys=True).encode())
        for name, content in pictures.items():
            (folder / name).write_bytes(content)
            digest.update(hashlib.sha256(content).digest())
        on_record(len(kept))
    (folder / f"{split}.json").write_text(json.dumps(kept) + "\n")
    return Written(len(kept), digest.hexdigest())
