"""Steps of known content, and what can be seen and broken of them on disk."""

from pathlib import Path

import torch

from training.checkpoints.store import save_step


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(7, 5, generator=generator), "step": torch.tensor(step)}


def save_steps(folder: Path, *steps: int, keep: int = 3) -> None:
    for step in steps:
        save_step(folder, step, tensors_of(step), {"cursor": step * 8, "rate": 0.1 + 0.2}, keep=keep)


def assert_is_step(loaded: tuple | None, step: int) -> None:
    assert loaded is not None
    assert loaded[0] == step
    assert all(torch.equal(loaded[1][name], tensor) for name, tensor in tensors_of(step).items())
    assert loaded[2] == {"cursor": step * 8, "rate": 0.1 + 0.2}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
