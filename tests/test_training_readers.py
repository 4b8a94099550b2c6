"""Laws of the readers: all layouts give the same samples; every bad record is named, counted and left out."""

import io
import json
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.faults import FaultLog, TooManyFaults
from training.readers import open_dataset
from training.samples import ImageRef, Message, Sample

RED = (200, 30, 40)
ASKED = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "Seven."}]
DRAWN = [
    {"role": "user", "content": "Draw <image> anew."},
    {"role": "assistant", "content": "Here: <image_gen>"},
]


def png(color=RED, mode="RGB", side=32):
    buffer = io.BytesIO()
    Image.new(mode, (side, side), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_json(folder, records, name="train.json"):
    path = folder / name
    lines = "\n".join(json.dumps(record) for record in records) + "\n"
    path.write_text(lines if name.endswith("l") else json.dumps(records))
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_parquet(path, images, turns=ASKED, **more):
    columns = {
        "id": [str(index) for index in range(len(images))],
        "image": images,
        "conversations": None,
        **more,
    }
    columns["conversations"] = [turns] * len(images)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def cell(content, path=None):
    return {"bytes": content, "path": path}


def read(path, root=None, **options):
    faults = FaultLog()
    return open_dataset("set", path, root, faults, **options), faults


def pixel(image):
    return image.open().getpixel((3, 3))


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
        {"id": 7, "image": "a.png", "conversations": ASKED, "meta": {"digit": 7}},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    ]

    (seen, spoken), faults = read(write_json(pictures, records, name))

    assert seen.messages == (Message("user", "<image>\nWhich?"), Message("assistant", "Seven."))
    assert (seen.id, seen.source, seen.meta, pixel(seen.images[0])) == ("7", "set", {"digit": 7}, RED)
    assert (spoken.id, spoken.images, faults.faults) == ("set/1", (), [])


def test_sharegpt_images_stand_in_the_order_of_their_placeholders(pictures):
    record = {"id": "x", "messages": DRAWN, "images": ["a.png", "b.png"], "meta": {"unseen": True}}

    (sample,), _ = read(write_json(pictures, [record]))

    assert [pixel(image) for image in sample.images] == [RED, (1, 2, 3)]
    assert sample.meta == {"unseen": True}
    assert sample.conversation() == DRAWN


def test_a_prompt_without_an_answer_is_a_sample(pictures):
    record = {"messages": [{"role": "user", "content": "Draw."}], "images": []}

    assert len(read(write_json(pictures, [record]))[0]) == 1


def test_relative_images_start_at_the_image_root(pictures):
    (pictures / "lists").mkdir()
    path = write_json(pictures / "lists", [{"image": "a.png", "conversations": ASKED}])

    assert len(read(path, pictures)[0]) == 1
    assert "missing image" in read(path)[1].faults[0].reason


def test_a_leading_answer_is_left_out_as_llava_does(pictures):
    turns = [{"from": "gpt", "value": "Welcome."}, *ASKED]

    (sample,), _ = read(write_json(pictures, [{"image": "a.png", "conversations": turns}]))

    assert [message.role for message in sample.messages] == ["user", "assistant"]


def turns_of(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "gone.png", "conversations": ASKED}, "missing image .*gone.png"),
        ({"image": "half.png", "conversations": ASKED}, "broken image .*half.png"),
        ({"image": "text.png", "conversations": ASKED}, "broken image .*text.png"),
        ({"image": ".", "conversations": ASKED}, "broken image"),
        ({"image": 7, "conversations": ASKED}, "image must name files, got 7"),
        ({"conversations": ASKED}, "0 images for 1 placeholders"),
        ({"image": ["a.png", "b.png"], "conversations": ASKED}, "2 images for 1 placeholders"),
        ({"messages": DRAWN, "images": ["a.png"]}, "1 images for 2 placeholders"),
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
    good = {"image": "a.png", "conversations": ASKED}
    path = write_json(pictures, [good, record, good])

    samples, faults = read(path)

    (fault,) = faults.faults
    assert len(samples) == 2
    assert (fault.dataset, fault.file, fault.index) == ("set", str(path), 1)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(fault.reason)


def test_a_line_that_is_no_json_is_one_bad_record(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"messages": [{"role": "user", "content": "Hi"}]}\n\n{"mess\n\xff\n')

    samples, faults = read(path)

    assert len(samples) == 1
    assert [fault.index for fault in faults.faults] == [2, 3]


@pytest.mark.parametrize(
    ("content", "message"), [("[{", "not JSON"), ('{"a": 1}', "list of records"), ("[]", "no records")]
)
def test_a_file_that_is_damaged_as_a_whole_is_named(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(content)

    with pytest.raises(ValueError, match=rf"train.json.*{message}"):
        read(path)


def test_pictures_are_not_decoded_unless_asked(pictures):
    (sample,), faults = read(
        write_json(pictures, [{"image": "half.png", "conversations": ASKED}]), verify_images=False
    )

    assert not faults.faults
    with pytest.raises(ValueError, match=r"broken image .*half\.png"):
        sample.images[0].open()


def test_parquet_gives_the_samples_of_the_json_layout(pictures):
    images = [cell(png()), cell(None, "b.png"), cell(png((9, 9, 9))), None]
    path = write_parquet(pictures / "train-0.parquet", images, data_source=list("abcd"))

    samples, faults = read(path)

    assert [pixel(sample.images[0]) for sample in samples] == [RED, (1, 2, 3), (9, 9, 9)]
    assert samples[0].messages == (Message("user", "<image>\nWhich?"), Message("assistant", "Seven."))
    assert [(sample.id, sample.meta) for sample in samples][2] == ("2", {"data_source": "c"})
    assert [(fault.index, fault.reason) for fault in faults.faults] == [(3, "0 images for 1 placeholders")]


def test_parquet_holds_bare_bytes_and_several_pictures_too(tmp_path):
    write_parquet(tmp_path / "a.parquet", [png()])
    turns = [{"role": "user", "content": "<image><image>"}]
    table = {"images": [[cell(png()), cell(png((9, 9, 9)))]], "messages": [turns]}
    pq.write_table(pa.table(table), tmp_path / "b.parquet")

    samples, faults = read(tmp_path)

    assert not faults.faults
    assert [[pixel(image) for image in sample.images] for sample in samples] == [[RED], [RED, (9, 9, 9)]]


def test_broken_cells_are_bad_records(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", [cell(b"no picture"), cell(None), cell(png()[:60]), cell(png())]
    )

    samples, faults = read(path)

    assert len(samples) == 1
    assert [fault.index for fault in faults.faults] == [0, 1, 2]


@pytest.mark.parametrize("keep", [10, 0.5])
@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
def test_a_damaged_shard_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"train-00000{suffix}"
    if suffix == ".tar":
        write_tar(path, [(f"{index}.txt", b"A seven.") for index in range(30)])
    else:
        write_parquet(path, [cell(png())] * 8)
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else int(len(content) * keep) // 512 * 512 + 100])

    with pytest.raises(ValueError, match="train-00000"):
        read(path)


def test_a_damaged_header_is_not_the_end_of_a_shard(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{index}.txt", b"A seven.") for index in range(4)])
    content = bytearray(path.read_bytes())
    content[2048:2100] = b"x" * 52
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"a\.tar is damaged at byte 2048"):
        read(path)


def test_tar_members_with_one_key_are_one_sample(tmp_path):
    facts = {"digit": 7, "caption": "a red seven"}
    members = [
        ("000.png", png()),
        ("000.json", json.dumps(facts).encode()),
        ("001.json", json.dumps({"id": "talk", "messages": DRAWN}).encode()),
        ("001.0.PNG", png()),
        ("001.1.png", png((9, 9, 9))),
        ("deep/002.jpg", png()),
        ("deep/002.txt", b"a seven"),
        ("003.png", png()),
        ("004.json", b"[]"),
        ("005.txt", b"a seven"),
    ]

    samples, faults = read(write_tar(tmp_path / "train-0.tar", members))

    assert [sample.id for sample in samples] == ["set/train-0/000", "talk", "set/train-0/deep/002"]
    assert samples[0].meta == facts
    assert samples[0].messages[1].content == "a red seven"
    assert [pixel(image) for image in samples[1].images] == [RED, (9, 9, 9)]
    assert [fault.index for fault in faults.faults] == [3, 4, 5]


def test_class_folders_become_requests_to_draw_that_never_change(tmp_path):
    for name in ("n01440764", "n01514668"):
        (tmp_path / name).mkdir()
        for index in range(20):
            (tmp_path / name / f"{index}.JPEG").write_bytes(png())
    (tmp_path / "n01440764" / "broken.png").write_bytes(b"")
    (tmp_path / "n01440764" / ".hidden.png").write_bytes(b"")
    (tmp_path / "classes.json").write_text(json.dumps({"n01440764": "tench", "n01514668": "old cock"}))

    samples, faults = read(tmp_path)

    assert (len(samples), len(faults.faults)) == (40, 1)
    assert samples == read(tmp_path)[0]
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
        read(tmp_path)


def test_a_pattern_reads_the_shards_of_one_split_in_order(tmp_path):
    for split in ("train-1", "train-0", "test-0"):
        write_tar(tmp_path / f"{split}.tar", [("k.png", png()), ("k.txt", split.encode())])

    samples, _ = read(tmp_path / "train-*.tar")

    assert [sample.messages[1].content for sample in samples] == ["train-0", "train-1"]
    with pytest.raises(ValueError, match=r"several splits, \['test', 'train'\]"):
        read(tmp_path)


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
        read(make(tmp_path))


def test_a_share_of_bad_records_stops_the_run_dataset_by_dataset():
    faults = FaultLog()
    faults.good("large", 10_000)
    faults.good("small", 97)
    for index in range(3):
        faults.add("small", "b.json", index, "turn 1 is empty")

    faults.check(0.03)

    with pytest.raises(TooManyFaults, match=r"small: 3 of 100 .*b\.json\[0\]: turn 1 is empty.*0\.02"):
        faults.check(0.02)


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan")])
def test_a_share_limit_is_a_share(limit):
    with pytest.raises(ValueError, match="share_limit"):
        FaultLog().check(limit)


def test_every_fault_is_saved(tmp_path):
    faults = FaultLog()
    faults.good("set", 3)
    faults.add("set", "a.json", 2, "no turns")

    faults.save(tmp_path / "deep" / "faults.json")

    assert json.loads((tmp_path / "deep" / "faults.json").read_text()) == {
        "datasets": {"set": {"good": 3, "bad": 1, "share": 0.25}},
        "faults": [{"dataset": "set", "file": "a.json", "index": 2, "reason": "no turns"}],
    }


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("P", 0, (0, 0, 0)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_any_picture_opens_as_rgb_with_transparent_places_white(tmp_path, mode, color, expected):
    path = tmp_path / "a.png"
    path.write_bytes(png(color, mode))

    assert (ImageRef(path).open().mode, pixel(ImageRef(path))) == ("RGB", expected)


def test_a_photograph_taken_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)

    assert ImageRef(tmp_path / "a.jpg").open().size == (20, 40)


def test_a_small_picture_opens_in_a_fifth_of_a_millisecond(tmp_path):
    noise = Image.effect_noise((32, 32), 50).convert("RGB")
    noise.save(tmp_path / "a.png")
    shard = write_tar(tmp_path / "a.tar", [("k.png", (tmp_path / "a.png").read_bytes()), ("k.txt", b"noise")])
    refs = [ImageRef(tmp_path / "a.png"), read(shard)[0][0].images[0]]

    for ref in refs:
        seconds = []
        for _ in range(200):
            start = time.perf_counter()
            ref.open()
            seconds.append(time.perf_counter() - start)
        # The fastest of many: other processes share the machine.
        assert min(seconds) < 2e-4


def test_a_sample_checks_itself():
    with pytest.raises(ValueError, match="0 images for 1 placeholders"):
        Sample("x", (Message("user", "<image_gen>"),), (), "set", {})
