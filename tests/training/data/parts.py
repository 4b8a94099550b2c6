"""A small processor, and datasets of several kinds on the disk, with pictures that differ."""

import functools
import json

from PIL import Image

from model.config import preset
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from training.data.prepared_data import DataFolders
from training.params import DatasetParams

CONFIG = preset("tiny")
WORDS = "Here it is and it shows a red square on nothing at all"
TURNS = {
    "text": [("Hi", WORDS)],
    "question": [("<image>\nWhich?", "Seven.")],
    "drawing": [("Draw", f"{WORDS} <image_gen> {WORDS}")],
    "interleaved": [("<image>\nAnd two", f"<image_gen> {WORDS} <image_gen>"), ("More", WORDS)],
}


@functools.cache
def processor():
    return VargptProcessor.for_config(
        CONFIG, build_text_tokenizer([f"Draw {WORDS}"], CONFIG), system_prompt=""
    )


def write_conversations(folder, kinds):
    """A JSON file of records of these kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, kind in enumerate(kinds):
        messages = [
            {"role": role, "content": f"{text} {index}" if role == "user" else text}
            for turn in TURNS[kind]
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        count = sum(message["content"].count("<image") for message in messages)
        names = [f"{index}-{number}.png" for number in range(count)]
        for number, name in enumerate(names):
            Image.new("RGB", (32, 32), (9 * index % 256, 80 * number, 40)).save(folder / name)
        records.append({"id": f"{kind}-{index}", "messages": messages, "images": names})
    path = folder / "train.json"
    path.write_text(json.dumps(records))
    return path


def folders_of(root):
    return DataFolders(root, root / "outputs" / "index")


def dataset_params(path, name="set", weight=1.0):
    return DatasetParams(name=name, path=path, weight=weight)
