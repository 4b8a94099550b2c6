"""Laws of JSON readers and of the log of bad records: every bad record is named, counted and left out."""

import json

import pytest

from tests.training.data.dataset_files import (
    QUESTION,
    RED,
    color_of,
    open_with_log,
    png,
    write_json,
    write_tar,
)
from training.data.bad_records import BadRecordLog, TooManyBadRecords
from training.data.samples import Message

DRAWING = [
    {"role": "user", "content": "Draw <image> anew."},
    {"role": "assistant", "content": "Here: <image_gen>"},
]

# Deeper than Python's parser goes.
TOO_DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def pictures(tmp_path):
    for name, color in (("a.png", RED), ("b.png", (1, 2, 3))):
        (tmp_path / name).write_bytes(png(color))
    (tmp_path / "half.png").write_bytes(png(side=200)[:100])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_llava_records_become_samples(pictures, name):
    records = [
        {"id": 7, "image": "a.png", "conversations": QUESTION, "meta": {"digit": 7}},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    ]

    (with_image, without_image), bad_records = open_with_log(write_json(pictures, records, name))

    assert with_image.messages == (Message("user", "<image>\nWhich?"), Message("assistant", "Seven."))
    assert (with_image.id, with_image.source, with_image.meta, color_of(with_image.images[0])) == (
        "7",
        "set",
        {"digit": 7},
        RED,
    )
    assert (without_image.id, without_image.images, bad_records.records) == ("set/1", (), [])


def test_sharegpt_images_are_in_the_order_of_their_placeholders(pictures):
    record = {"id": "x", "messages": DRAWING, "images": ["a.png", "b.png"], "meta": {"unseen": True}}

    (sample,), _ = open_with_log(write_json(pictures, [record]))

    assert [color_of(image) for image in sample.images] == [RED, (1, 2, 3)]
    assert sample.meta == {"unseen": True}
    assert sample.conversation() == DRAWING


def test_a_prompt_without_an_answer_is_a_sample(pictures):
    record = {"messages": [{"role": "user", "content": "Draw."}], "images": []}

    assert len(open_with_log(write_json(pictures, [record]))[0]) == 1


def test_relative_images_start_at_the_image_root(pictures):
    (pictures / "lists").mkdir()
    path = write_json(pictures / "lists", [{"image": "a.png", "conversations": QUESTION}])

    assert len(open_with_log(path, pictures)[0]) == 1
    assert "missing image" in open_with_log(path)[1].records[0].reason


def test_a_leading_answer_is_left_out_as_llava_does(pictures):
    turns = [{"from": "gpt", "value": "Welcome."}, *QUESTION]

    (sample,), _ = open_with_log(write_json(pictures, [{"image": "a.png", "conversations": turns}]))

    assert [message.role for message in sample.messages] == ["user", "assistant"]


def turns_of(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "gone.png", "conversations": QUESTION}, "missing image .*gone.png"),
        ({"image": "half.png", "conversations": QUESTION}, "broken image .*half.png"),
        ({"image": "text.png", "conversations": QUESTION}, "broken image .*text.png"),
        ({"image": ".", "conversations": QUESTION}, "missing image .*Is a directory"),
        ({"image": "a" * 5000, "conversations": QUESTION}, "missing image .*File name too long"),
        ({"image": 7, "conversations": QUESTION}, "image must name files, got 7"),
        ({"conversations": QUESTION}, "0 images for 1 placeholders"),
        ({"image": ["a.png", "b.png"], "conversations": QUESTION}, "2 images for 1 placeholders"),
        ({"messages": DRAWING, "images": ["a.png"]}, "1 images for 2 placeholders"),
        (turns_of(("user", "Hi"), ("assistant", " \n")), "turn 1 is empty"),
        (turns_of(("user", "Hi"), ("robot", "Ho")), "unknown role 'robot'"),
        (turns_of(("user", "Hi"), (None, "Ho")), "unknown role 'None'"),
        (turns_of(("user", "Hi"), ("user", "Ho")), "take turns"),
        (turns_of(("system", "Be kind.")), "take turns"),
        (turns_of(("user", 5)), "content must be text, got int"),
        (turns_of(("user", "a <|image_gen_pad|>")), "reserved word"),
        (turns_of(("user", "\ud800")), "half a character"),
        ({"messages": []}, "no turns"),
        ({"messages": "Hi"}, "messages must be a list, got str"),
        ({"messages": ["Hi"]}, "turn 0 must be an object"),
        ({"conversations": [{"from": "human"}]}, r"turn 0 lacks \['value'\]"),
        ({"id": 1}, "neither messages nor conversations"),
        ({**turns_of(("user", "Hi")), "meta": 3}, "meta must be an object"),
        ([], "a record must be an object, got list"),
        (None, "a record must be an object, got NoneType"),
    ],
)
def test_a_bad_record_is_listed_and_its_neighbours_are_kept(pictures, record, reason):
    good = {"image": "a.png", "conversations": QUESTION}
    path = write_json(pictures, [good, record, good])

    samples, bad_records = open_with_log(path)

    (bad_record,) = bad_records.records
    assert len(samples) == 2
    assert (bad_record.dataset, bad_record.file, bad_record.index) == ("set", str(path), 1)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad_record.reason)


def test_a_line_that_is_no_json_is_one_bad_record(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "Hi"}]}\n\n{"mess\n\xff\n')

    samples, bad_records = open_with_log(path)

    assert len(samples) == 1
    assert [bad_record.index for bad_record in bad_records.records] == [2, 3]


def test_a_line_that_is_nested_too_deeply_is_one_bad_record(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"messages": [{{"role": "user", "content": "Hi"}}]}}\n{TOO_DEEP}\n')

    samples, bad_records = open_with_log(path)

    assert len(samples) == 1
    assert [bad_record.reason for bad_record in bad_records.records] == [
        "not JSON that can be read: nested too deeply"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "not JSON"),
        (TOO_DEEP, "nested too deeply"),
        (f'{{"a": {TOO_DEEP}}}', "nested too deeply"),
        ('{"a": 1}', "list of records"),
        ("[]", "no records"),
    ],
)
def test_a_file_without_readable_records_is_named(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=rf"train.json.*{message}"):
        open_with_log(path)


def test_images_are_not_decoded_where_verification_is_off(pictures):
    (sample,), bad_records = open_with_log(
        write_json(pictures, [{"image": "half.png", "conversations": QUESTION}]), verify_images=False
    )

    assert not bad_records.records
    with pytest.raises(ValueError, match=r"broken image .*half\.png"):
        sample.images[0].open()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "gone.json", "gone.json is neither"),
        (lambda folder: write_tar(folder / "notes.zip", []), "notes.zip is no layout"),
        (
            lambda folder: write_json(folder, [], "a.json") and write_json(folder, [], "b.json").parent,
            "name one of",
        ),
        (lambda folder: folder, "no records"),
        (lambda folder: write_tar(folder / "empty.tar", []), "no records"),
    ],
)
def test_a_path_that_is_no_dataset_is_named(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        open_with_log(make(tmp_path))


def test_a_share_of_bad_records_stops_the_run_dataset_by_dataset():
    bad_records = BadRecordLog()
    bad_records.add_good("large", 10_000)
    bad_records.add_good("small", 97)
    for index in range(3):
        bad_records.add("small", "b.json", index, "turn 1 is empty")

    bad_records.check(0.03)

    with pytest.raises(TooManyBadRecords, match=r"small: 3 of 100 .*b\.json\[0\]: turn 1 is empty.*0\.02"):
        bad_records.check(0.02)


def test_every_bad_record_is_saved(tmp_path):
    bad_records = BadRecordLog()
    bad_records.add_good("set", 3)
    bad_records.add("set", "a.json", 2, "no turns")

    bad_records.save(tmp_path / "deep" / "bad_records.json")

    assert json.loads((tmp_path / "deep" / "bad_records.json").read_text()) == {
        "datasets": {"set": {"good": 3, "bad": 1, "share": 0.25}},
        "bad_records": [{"dataset": "set", "file": "a.json", "index": 2, "reason": "no turns"}],
    }
