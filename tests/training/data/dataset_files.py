"""Writes small datasets in the published layouts, and opens them."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from training.data.bad_records import BadRecordLog
from training.data.readers import open_dataset

RED = (200, 30, 40)
QUESTION = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "Seven."}]


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


def write_parquet(path, images, turns=QUESTION, **more):
    columns = {
        "id": [str(index) for index in range(len(images))],
        "image": images,
        "conversations": None,
        **more,
    }
    columns["conversations"] = [turns] * len(images)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def image_cell(content, path=None):
    return {"bytes": content, "path": path}


def open_with_log(path, root=None, **options):
    """The samples of a dataset named `set`, and the log of its bad records."""
    bad_records = BadRecordLog()
    return open_dataset("set", path, root, bad_records, **options), bad_records


def color_of(image):
    """Of one pixel, for images of one colour."""
    return image.open().getpixel((3, 3))
