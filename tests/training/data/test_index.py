"""Laws of the index: what every reader reads, checked once by any number of processes, opened at once."""

import json

import pytest

from model.errors import UserError
from tests.training.data.dataset_files import QUESTION, image_cell, png, write_json, write_parquet, write_tar
from tests.training.data.parts import dataset_params, folders_of, processor, write_conversations
from training.data import class_folder_reader, json_reader, parquet_reader
from training.data.bad_records import BadRecordLog
from training.data.content_hashes import samples_sha256
from training.data.datasets import as_dataset, picture_digest, split_held_out
from training.data.index_building import PieceChecker
from training.data.prepared_data import index_datasets, open_mixture
from training.data.readers import open_dataset
from training.data.sample_facts import sample_facts

MIXED = ["text", "question", "drawing", "interleaved", "text", "drawing", "question"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    for module in (json_reader, parquet_reader, class_folder_reader):
        monkeypatch.setattr(module, "RECORDS_PER_PIECE", 3)


def write_classes(folder):
    (folder / "seven").mkdir(parents=True)
    for index in range(4):
        (folder / "seven" / f"{index}.png").write_bytes(png((index, 0, 0)))
    return folder


def write_shards(folder):
    members = [
        (f"{n}.{suffix}", content)
        for n in range(3)
        for suffix, content in (("png", png()), ("txt", b"A seven."))
    ]
    return write_tar(folder / "train.tar", members)


LAYOUTS = {
    "json": lambda folder: write_conversations(folder, MIXED),
    "parquet": lambda folder: write_parquet(
        folder / "a.parquet", [image_cell(png((index, 1, 2))) for index in range(5)]
    ),
    "tar": write_shards,
    "classes": write_classes,
}


def indexed(root, path, workers=1, with_lengths=True, share=0.5):
    [index] = index_datasets(
        [dataset_params(str(path))], folders_of(root), processor() if with_lengths else None, workers, share
    ).values()
    return index


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_has_what_the_reader_reads(tmp_path, layout):
    (tmp_path / "set").mkdir()
    path = LAYOUTS[layout](tmp_path / "set")
    expected = open_dataset("set", path, None, BadRecordLog())

    index = indexed(tmp_path, path)

    assert len(index) == len(expected) > 0
    for number, sample in enumerate(expected):
        found = index[number]
        assert (found.id, found.messages, found.source) == (sample.id, sample.messages, "set")
        assert found.meta == sample.meta
        contents = [image.content() for image in sample.images]
        assert [image.content() for image in found.images] == contents
        assert index.picture_digests(number) == [picture_digest(content) for content in contents]
        assert index.facts(number) == sample_facts(sample, processor())


def test_several_processes_make_the_same_index_as_one(tmp_path):
    path = write_conversations(tmp_path / "set", MIXED * 2)
    one = indexed(tmp_path, path)
    alone = one[:], one.sha256()

    (one.folder / "index.json").unlink()
    (one.folder / "started.json").unlink()
    several = indexed(tmp_path, path, workers=2)

    assert (several[:], several.sha256()) == alone


def test_a_run_that_was_killed_goes_on_with_the_pieces_that_are_left(tmp_path, monkeypatch):
    path = write_conversations(tmp_path / "set", MIXED * 2)
    expected = indexed(tmp_path / "other", path)
    check, checked = PieceChecker.check, []

    def killed_after_two(self, number, piece):
        if len(checked) == 2:
            # What a killed process leaves behind.
            (self.folder / "piece_00002.records.1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        checked.append(number)
        return check(self, number, piece)

    monkeypatch.setattr(PieceChecker, "check", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        indexed(tmp_path, path)
    monkeypatch.setattr(
        PieceChecker, "check", lambda self, n, piece: (checked.append(n), check(self, n, piece))[1]
    )

    index = indexed(tmp_path, path)

    assert checked == [0, 1, 2, 3, 4]
    assert index.sha256() == expected.sha256() and index[:] == expected[:]
    indexed(tmp_path, path)
    assert checked == [0, 1, 2, 3, 4], "what is finished is not checked again"


def test_an_opened_index_looks_at_no_record_and_no_picture(tmp_path):
    path = write_conversations(tmp_path / "set", MIXED)
    expected = samples_sha256([indexed(tmp_path, path)])
    for picture in (tmp_path / "set").glob("*.png"):
        picture.unlink()
    log = BadRecordLog()

    mixture = open_mixture([dataset_params(str(path))], folders_of(tmp_path), 0.0, 0, log)

    assert samples_sha256(mixture.datasets) == expected
    assert log.num_good == {"set": len(MIXED)} and not log.records
    assert mixture.datasets[0].facts(0).tokens > 0


def test_bad_records_and_pictures_are_listed_with_file_and_index(tmp_path):
    records = [
        {"image": name, "conversations": QUESTION} for name in ("a.png", "b.png", "c.png", "a.png", "a.png")
    ]
    path = write_json(tmp_path, [*records[:2], {"conversations": []}, *records[2:]])
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "b.png").write_bytes(png()[:40])

    index = indexed(tmp_path, path)

    assert len(index) == 3
    assert [(bad.file, bad.index) for bad in index.bad_records()] == [(str(path), n) for n in (1, 2, 3)]
    assert "broken image" in index.bad_records()[0].reason
    with pytest.raises(UserError, match=r"set: 3 of 6 records are bad.*allowed: a share of 0.1"):
        indexed(tmp_path, path, share=0.1)


def test_a_dataset_without_a_good_record_is_refused(tmp_path):
    path = write_json(tmp_path, [{"conversations": []}])

    with pytest.raises(UserError, match=r"'set' holds no good records.*train.json\[0\]"):
        indexed(tmp_path, path)


def test_data_that_changed_after_it_was_checked_is_refused_until_it_is_checked_again(tmp_path):
    path = write_conversations(tmp_path / "set", MIXED)
    before = indexed(tmp_path, path).sha256()
    records = json.loads(path.read_text())
    path.write_text(json.dumps(records[:-1]))

    with pytest.raises(UserError, match="changed since it was checked; run: vargpt data prepare"):
        open_mixture([dataset_params(str(path))], folders_of(tmp_path), 0.0, 0, BadRecordLog())
    assert indexed(tmp_path, path).sha256() != before
    open_mixture([dataset_params(str(path))], folders_of(tmp_path), 0.0, 0, BadRecordLog())


def test_the_hash_of_an_index_follows_every_word_and_pixel_and_no_path(tmp_path):
    first = indexed(tmp_path / "1", write_conversations(tmp_path / "1" / "set", MIXED))
    moved = indexed(tmp_path / "2", write_conversations(tmp_path / "2" / "set", MIXED))
    changed_folder = tmp_path / "3" / "set"
    path = write_conversations(changed_folder, MIXED)
    (changed_folder / "3-1.png").write_bytes(png())

    assert moved.sha256() == first.sha256()
    assert indexed(tmp_path / "3", path).sha256() != first.sha256()


def test_held_out_samples_are_never_trained_on_and_the_same_in_every_run(tmp_path):
    path = write_conversations(tmp_path / "set", MIXED * 3)
    index = indexed(tmp_path, path)

    training, held = split_held_out(index, 0.2)

    assert len(held) == 5 and len(training) == 16
    numbers = [part.original(n) for part in (training, held) for n in range(len(part))]
    assert sorted(numbers) == list(range(21)) and numbers[:16] == sorted(numbers[:16])
    assert [s.id for s in held] == [index[held.original(n)].id for n in range(5)]
    again = split_held_out(index, 0.2)[1]
    assert [again.original(n) for n in range(5)] == [held.original(n) for n in range(5)]
    assert training.sha256() != index.sha256()
    assert split_held_out(as_dataset(index[:]), 0.0)[1] is None


def test_an_index_without_a_processor_knows_no_lengths(tmp_path):
    index = indexed(tmp_path, write_conversations(tmp_path / "set", MIXED), with_lengths=False)

    assert index.facts(0) is None and index.text_sha256() is None


def test_unfinished_files_are_not_taken_for_the_index(tmp_path):
    path = write_conversations(tmp_path / "set", MIXED)
    folder = folders_of(tmp_path).index_of(dataset_params(str(path)))
    folder.mkdir(parents=True)
    (folder / "table.npy").write_bytes(b"half")

    mixture = open_mixture([dataset_params(str(path))], folders_of(tmp_path), 0.0, 0, BadRecordLog())

    assert len(mixture.datasets[0]) == len(MIXED)
    assert len(indexed(tmp_path, path)) == len(MIXED)
    assert not list(folder.glob("*.tmp"))
