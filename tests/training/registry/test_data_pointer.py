"""Laws of hashes of data: ours are DVC's, and a .dvc file that names no single hash is refused by name."""

import pytest

from tests.training.registry.repositories import DVC, run
from training.registry.data_pointer import data_md5, data_path, md5_on_disk


def test_our_hash_of_a_folder_is_the_one_that_dvc_writes(repository):
    pointer = repository / "data.dvc"

    assert data_md5(pointer).endswith(".dir")
    assert md5_on_disk(data_path(pointer)) == data_md5(pointer)


def test_our_hash_of_a_file_is_the_one_that_dvc_writes(repository):
    (repository / "raw.bin").write_bytes(bytes(range(256)))
    run(repository, DVC, "add", "-q", "raw.bin")

    assert md5_on_disk(repository / "raw.bin") == data_md5(repository / "raw.bin.dvc")


@pytest.mark.parametrize("text", ["", "outs: []", "outs:\n- path: data\n", "outs: [{md5: a}, {md5: b}]", "{"])
def test_a_pointer_without_one_hash_is_named(tmp_path, text):
    (tmp_path / "data.dvc").write_text(text)

    for function in (data_md5, data_path):
        with pytest.raises(ValueError, match=r"data\.dvc does not name one output"):
            function(tmp_path / "data.dvc")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.dvc does not exist"):
        data_md5(tmp_path / "data.dvc")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        md5_on_disk(tmp_path / "nowhere")
