"""Laws of the parquet, tar and class-folder readers: samples as from JSON; damaged files are named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.training.data.dataset_files import (
    RED,
    color_of,
    image_cell,
    open_with_log,
    png,
    write_parquet,
    write_tar,
)
from training.data.samples import Message

DRAWING = [
    {"role": "user", "content": "Draw <image> anew."},
    {"role": "assistant", "content": "Here: <image_gen>"},
]


def test_parquet_gives_the_samples_of_the_json_layout(tmp_path):
    (tmp_path / "b.png").write_bytes(png((1, 2, 3)))
    images = [image_cell(png()), image_cell(None, "b.png"), image_cell(png((9, 9, 9))), None]
    path = write_parquet(tmp_path / "train-0.parquet", images, data_source=list("abcd"))

    samples, bad_records = open_with_log(path)

    assert [color_of(sample.images[0]) for sample in samples] == [RED, (1, 2, 3), (9, 9, 9)]
    assert samples[0].messages == (Message("user", "<image>\nWhich?"), Message("assistant", "Seven."))
    assert [(sample.id, sample.meta) for sample in samples][2] == ("2", {"data_source": "c"})
    assert [(bad_record.index, bad_record.reason) for bad_record in bad_records.records] == [
        (3, "0 images for 1 placeholders")
    ]


def test_parquet_cells_may_hold_plain_bytes_or_several_images(tmp_path):
    write_parquet(tmp_path / "a.parquet", [png()])
    turns = [{"role": "user", "content": "<image><image>"}]
    table = {"images": [[image_cell(png()), image_cell(png((9, 9, 9)))]], "messages": [turns]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")

    samples, bad_records = open_with_log(tmp_path)

    assert not bad_records.records
    assert [[color_of(image) for image in sample.images] for sample in samples] == [[RED], [RED, (9, 9, 9)]]


def test_broken_cells_are_bad_records(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        [image_cell(b"no picture"), image_cell(None), image_cell(png()[:60]), image_cell(png())],
    )

    samples, bad_records = open_with_log(path)

    assert len(samples) == 1
    assert [bad_record.index for bad_record in bad_records.records] == [0, 1, 2]


@pytest.mark.parametrize("keep", [10, 0.5])
@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_a_damaged_shard_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"train-00000{suffix}"
    if suffix == ".tar":
        write_tar(path, [(f"{index}.txt", b"A seven.") for index in range(30)])
    else:
        write_parquet(path, [image_cell(png())] * 8)
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else int(len(content) * keep) // 512 * 512 + 100])

    with pytest.raises(ValueError, match="train-00000"):
        open_with_log(path)


def test_a_damaged_header_is_not_the_end_of_a_shard(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{index}.txt", b"A seven.") for index in range(4)])
    content = bytearray(path.read_bytes())
    content[2048:2100] = b"x" * 52
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"a\.tar is damaged at byte 2048"):
        open_with_log(path)


def test_tar_members_with_one_key_are_one_sample(tmp_path):
    facts = {"digit": 7, "caption": "a red seven"}
    members = [
        ("000.png", png()),
        ("000.json", json.dumps(facts).encode()),
        ("001.json", json.dumps({"id": "talk", "messages": DRAWING}).encode()),
        ("001.0.PNG", png()),
        ("001.1.png", png((9, 9, 9))),
        ("deep/002.jpg", png()),
        ("deep/002.txt", b"a seven"),
        ("003.png", png()),
        ("004.json", b"[]"),
        ("005.txt", b"a seven"),
    ]

    samples, bad_records = open_with_log(write_tar(tmp_path / "train-0.tar", members))

    assert [sample.id for sample in samples] == ["set/train-0/000", "talk", "set/train-0/deep/002"]
    assert samples[0].meta == facts
    assert samples[0].messages[1].content == "a red seven"
    assert [color_of(image) for image in samples[1].images] == [RED, (9, 9, 9)]
    assert [bad_record.index for bad_record in bad_records.records] == [3, 4, 5]


def test_class_folders_become_requests_to_draw_that_never_change(tmp_path):
    for name in ("n01440764", "n01514668"):
        (tmp_path / name).mkdir()
        for index in range(20):
            (tmp_path / name / f"{index}.JPEG").write_bytes(png())
    (tmp_path / "n01440764" / "broken.png").write_bytes(b"")
    (tmp_path / "n01440764" / ".hidden.png").write_bytes(b"")
    (tmp_path / "classes.json").write_text(json.dumps({"n01440764": "tench", "n01514668": "old cock"}))

    samples, bad_records = open_with_log(tmp_path)

    assert (len(samples), len(bad_records.records)) == (40, 1)
    assert samples == open_with_log(tmp_path)[0]
    assert {sample.messages[0].content for sample in samples[:20]} == {
        "Please design a drawing of a tench.",
        "Can you generate a rendered photo of a tench?",
        "I need a designed photo of a tench.",
    }
    assert all(sample.messages[1].content.endswith("an old cock <image_gen>") for sample in samples[20:])
    assert samples[20].meta == {"class": "n01514668", "name": "old cock"}


def test_a_class_without_a_name_is_refused(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "classes.json").write_text("{}")

    with pytest.raises(ValueError, match=r"classes\.json does not name \['n01'\]"):
        open_with_log(tmp_path)


def test_a_list_of_classes_is_refused(tmp_path):
    (tmp_path / "n01").mkdir()
    (tmp_path / "classes.json").write_text("[]")

    with pytest.raises(ValueError, match=r"classes\.json must hold an object, got list"):
        open_with_log(tmp_path)


def test_a_caption_that_is_no_text_is_a_bad_record(tmp_path):
    members = [("1.png", png()), ("1.json", b'{"caption": 5}'), ("2.png", png()), ("2.txt", b"A two.")]

    samples, bad_records = open_with_log(write_tar(tmp_path / "a.tar", members))

    assert [sample.messages[1].content for sample in samples] == ["A two."]
    assert [bad.reason for bad in bad_records.records] == ["the caption of 1 must be text, got int"]


def test_a_pattern_reads_the_shards_of_one_split_in_order(tmp_path):
    for split in ("train-1", "train-0", "test-0"):
        write_tar(tmp_path / f"{split}.tar", [("k.png", png()), ("k.txt", split.encode())])

    samples, _ = open_with_log(tmp_path / "train-*.tar")

    assert [sample.messages[1].content for sample in samples] == ["train-0", "train-1"]
    with pytest.raises(ValueError, match=r"several splits, \['test', 'train'\]"):
        open_with_log(tmp_path)
