"""Laws of pieces: read one by one they are the whole dataset, however small they and the reads are."""

import json

import pytest

from tests.training.data.dataset_files import QUESTION, image_cell, png, write_json, write_parquet, write_tar
from training.data import class_folder_reader, json_reader, json_spans, parquet_reader
from training.data.readers import open_reader


@pytest.fixture(params=[1, 3, 1000])
def small_pieces(request, monkeypatch):
    for module in (json_reader, parquet_reader, class_folder_reader):
        monkeypatch.setattr(module, "RECORDS_PER_PIECE", request.param)
    return request.param


def write_classes(folder):
    for name in ("a", "b"):
        (folder / name).mkdir()
        for index in range(4):
            (folder / name / f"{index}.png").write_bytes(png())
    return folder


def write_two_shards(folder):
    for number in range(2):
        write_tar(folder / f"{number}.tar", [("k.png", png()), ("k.txt", b"A seven.")] * 3)
    return folder


def write_two_parquets(folder):
    for number in range(2):
        write_parquet(folder / f"{number}.parquet", [image_cell(png())] * 7)
    return folder


def records(count):
    return [
        {"id": index, "image": "a.png", "conversations": QUESTION, "note": "ü]},{[" * index}
        for index in range(count)
    ]


LAYOUTS = {
    "json": lambda folder: write_json(folder, records(10)),
    "jsonl": lambda folder: write_json(folder, records(10), "train.jsonl"),
    "parquet": write_two_parquets,
    "tar": write_two_shards,
    "classes": write_classes,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_together_are_the_dataset_in_its_order(tmp_path, layout, small_pieces):
    (tmp_path / "set").mkdir()
    reader = open_reader("set", LAYOUTS[layout](tmp_path / "set"), None)

    pieces = list(reader.pieces())
    found = [(record.file, record.index) for piece in pieces for record in reader.records(piece)]
    identities = [record.parse().id for piece in pieces for record in reader.records(piece)]

    assert len(identities) == {"parquet": 14, "tar": 2, "classes": 8}.get(layout, 10)
    assert found == sorted(set(found), key=lambda pair: (str(pair[0].parent), str(pair[0]), pair[1]))
    if layout.startswith("json"):
        assert identities == [str(index) for index in range(10)]
    for piece in pieces:
        assert piece.count in (None, len(list(reader.records(piece))))
    backwards = [record.index for piece in pieces[::-1] for record in reader.records(piece)]
    assert sorted(backwards) == sorted(index for _, index in found)


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_cut_at_its_elements_however_it_is_read(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_spans, "CHUNK_BYTES", chunk)
    content = [{"a": '], [ü\u2028\\"'}, 12, 3.5e7, "x", [], {}, None, True, {"b": {"c": [1, [2]]}}, 42]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
    size = path.stat().st_size

    spans = list(json_spans.list_spans(path, 0, size, 0))
    parts = [json.loads(path.read_bytes()[span.start : span.stop]) for span in spans]
    again = list(json_spans.list_spans(path, spans[3].start, spans[6].stop, 3))

    assert parts == content
    assert again == spans[3:7]


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "list.json"
    path.write_bytes(b"\xef\xbb\xbf [1, 2]\n")

    assert [span.index for span in json_spans.list_spans(path, 0, 11, 0)] == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "a comma is missing at byte 5"),
        ("[1 2]", "a comma is missing at byte 3"),
        ("[1,]", "Expecting value at byte 3"),
        ("[1] []", "more after the list at byte 4"),
        ("[] 1", "more after the list"),
        ('[{"a": }]', "at byte 1"),
        ("", "not JSON"),
        ('"text"', "must hold a list of records, got str"),
    ],
)
def test_a_fault_of_a_file_is_named_with_its_place(tmp_path, content, message):
    path = tmp_path / "list.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=message):
        list(json_spans.list_spans(path, 0, len(content), 0))
