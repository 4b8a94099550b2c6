"""Laws of training all backbones: resumed after any kill bit by bit, errors of workers reach the parent."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.scene_shards import write_scene_shard
from training.backbones import worker_processes
from training.backbones.build import make_backbones
from training.errors import Stopped
from training.params import load_params

ROOT = Path(__file__).parents[3]
SCRIPT = """
import hashlib, sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, {root!r})
    from tests.training.backbones.test_run import small_params
    from training.backbones.build import make_backbones

    def ignore(backbone, step, losses):
        pass

    model, processor = make_backbones(
        small_params(), Path(sys.argv[1]), Path(sys.argv[2]), ignore, checkpoint_every=2
    )
    digest = hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    print(digest.hexdigest())
"""


def small_params():
    params = load_params(ROOT / "params.yaml", "smoke")
    small = {
        name: section.model_copy(update={"steps": 8, "batch": 8, "warmup": 1})
        for name, section in params.backbones
    }
    return params.model_copy(update={"backbones": params.backbones.model_copy(update=small)})


def write_prepared(folder, num_scenes=24):
    (folder / "scenes").mkdir(parents=True)
    for split in ("train", "drawn"):
        noise = np.random.default_rng(0).integers(0, 255, (num_scenes, 32, 32, 3), np.uint8)
        write_scene_shard(folder / "scenes" / f"{split}-00000.tar", noise)
    for kind in ("text", "understanding", "drawing"):
        turns = [
            {"role": "user", "content": f"What is a {kind}?"},
            {"role": "assistant", "content": "A word."},
        ]
        records = [{"id": f"{kind}-{n}", "messages": turns, "images": []} for n in range(12)]
        (folder / kind).mkdir()
        (folder / kind / "train.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "prepared")


def start(tmp_path, prepared, folder):
    """Start a process that makes backbones and prints a hash of the model."""
    script = tmp_path / "make.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    command = [sys.executable, str(script), str(prepared), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)


def children_of(process):
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_gone(pid):
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def ignore(backbone, step, losses):
    pass


@pytest.mark.slow
def test_backbones_killed_twice_end_with_the_same_bits(tmp_path, prepared, wait_until):
    undisturbed, _ = start(tmp_path, prepared, tmp_path / "undisturbed").communicate()
    folder = tmp_path / "killed"

    for backbone in ("tokenizer", "decoder"):
        process = start(tmp_path, prepared, folder)
        step = folder / "parts" / backbone / "step_2"
        wait_until(lambda step=step, process=process: step.exists() or process.poll() is not None)
        assert step.exists(), "it ended before it was killed"
        children = children_of(process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until(lambda children=children: all(is_gone(child) for child in children))

    resumed, _ = start(tmp_path, prepared, folder).communicate()
    assert undisturbed.strip()
    assert resumed == undisturbed


@pytest.mark.slow
def test_a_stop_is_raised_after_saving(tmp_path, prepared, monkeypatch):
    steps = []
    # On a machine that is busy, a worker may still be starting, which must not end it.
    monkeypatch.setattr(worker_processes, "STOP_TIMEOUT_SECONDS", 300.0)

    with pytest.raises(Stopped, match=r"stopped after \d of 8 steps"):
        make_backbones(
            small_params(),
            prepared,
            tmp_path / "out",
            lambda backbone, step, losses: steps.append((backbone, step)),
            should_stop=lambda: bool(steps),
            checkpoint_every=100,
        )

    stopped = {backbone for backbone, _ in steps}
    assert any(list((tmp_path / "out" / "parts" / backbone).glob("step_*")) for backbone in stopped)


@pytest.mark.slow
def test_a_user_error_in_a_worker_is_raised_by_the_parent(tmp_path, prepared):
    (prepared / "scenes" / "train-00000.tar").unlink()

    with pytest.raises(ValueError, match=r"no shards train-\*\.tar in"):
        make_backbones(small_params(), prepared, tmp_path / "out", ignore)


def test_a_preset_that_is_imported_is_not_trained(tmp_path):
    params = small_params().model_copy(update={"preset": "7b"})

    with pytest.raises(ValueError, match="vargpt import-weights"):
        make_backbones(params, tmp_path, tmp_path / "out", ignore)


def test_missing_conversations_are_named(tmp_path, prepared):
    (prepared / "drawing" / "train.json").unlink()

    with pytest.raises(ValueError, match=r"no prepared data at .*drawing/train\.json"):
        make_backbones(small_params(), prepared, tmp_path / "out", ignore)
