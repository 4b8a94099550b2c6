"""Laws of files of weights: tensors by name are read from any kind of them, and nothing else is."""

import pytest
import torch
from safetensors.torch import save_file

from model.errors import UserError
from model.weight_files import open_weights


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_tensors_come_back_from_either_kind_of_file(tmp_path, name):
    weights = {"a": torch.arange(3.0)}
    (torch.save if name.endswith(".pth") else save_file)(weights, tmp_path / name)

    assert torch.equal(open_weights(tmp_path / name).read("a"), weights["a"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("weights.pth", b"abc", "cannot be read"),
        ("weights.pth", b"", "cannot be read"),
        ("weights.safetensors", b"abc", "cannot be read"),
        ("weights.pth", {"model": {"a": torch.zeros(1)}}, "more than tensors: 'model' is of type dict"),
        ("weights.pth", [torch.zeros(1)], "holds a list instead of tensors by name"),
        ("weights.pth", {"run": print}, "cannot be read"),
        ("weights.bin", b"abc", "must be .safetensors or a published .pth"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    with pytest.raises(UserError, match=said):
        open_weights(path)


def test_a_folder_without_weights_and_a_path_without_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.safetensors files"):
        open_weights(tmp_path)
    with pytest.raises(UserError, match="no weights at"):
        open_weights(tmp_path / "absent.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_disk_that_fails_is_no_mistake_of_the_file(tmp_path, name):
    # A file that can be opened, but neither read from its beginning nor mapped.
    (tmp_path / name).symlink_to("/proc/self/mem")

    with pytest.raises(OSError, match=r"Input/output error|No such device"):
        open_weights(tmp_path / name)


def test_a_disk_that_fails_after_the_file_was_opened_is_told_from_a_file_that_is_gone(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    weights = open_weights(path)
    path.unlink()

    with pytest.raises(UserError, match="cannot be read"):
        weights.read("a")
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="No such device"):
        weights.read("a")


def test_a_file_that_cannot_be_opened_now_is_not_said_to_be_absent(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3.0)}, path)
    weights = open_weights(path)
    path.unlink()
    # As a stale handle, of which safetensors says that there is no such file.
    path.symlink_to(path)

    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        weights.read("a")
