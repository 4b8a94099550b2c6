"""Writes tar shards of scenes, as `vargpt data prepare` does, with images of the test's own."""

import io
import json
import tarfile

from PIL import Image


def write_scene_shard(path, images):
    """Write images (H, W, 3), uint8, with digits 0 to 9 in turn, all red on gray."""
    with tarfile.open(path, "w") as tar:
        for index, pixels in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            attributes = {"digit": index % 10, "color": "red", "background": "gray"}
            for suffix, content in (("png", buffer.getvalue()), ("json", json.dumps(attributes).encode())):
                entry = tarfile.TarInfo(f"{index:06d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
