"""Laws of the evaluation: every promised figure, the same each time, and only what was drawn is credited."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.checkpoint import save_model
from model.config import preset
from model.generation.sampling import SamplingParams
from model.manifest import manifest_sha256
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.raw_data import copy_raw_data
from training.data.bad_records import BadRecordLog
from training.data.readers import open_dataset
from training.data.samples import ImageRef, Message, Sample
from training.evaluation import evaluate as evaluate_module
from training.evaluation import judge as judge_module
from training.evaluation.evaluate import EvaluateParams, evaluate, prompts_sha256
from training.evaluation.judge import Verdict, train_judge
from training.evaluation.real_pictures import RealPictures
from training.evaluation.reconstruction import reconstruct
from training.evaluation.replies import (
    NOTHING_DRAWN,
    ModelReply,
    as_answer,
    as_drawings,
    conversation,
    expected_words,
    reply_to,
)
from training.registry.data_pointer import data_md5

POINTER = Path(__file__).parents[3] / "data.dvc"
PARAMS = EvaluateParams(batch=8, questions=100, drawings=100)
PROMISED = {
    "draw": "all_right digit color background unseen frechet frechet_floor frechet_ratio n n_unseen",
    "vqa": "digit color background exists parity caption n",
    "pope": "random popular adversarial",
    "tokenizer": "psnr judge",
    "judge": "digit color background",
}
FACTS = {"digit": 7, "color": "red", "background": "white", "scan": -1, "unseen": False}
REPLY = "Here is a red seven on a white background. <image_gen>"


@pytest.fixture(scope="module", autouse=True)
def quick_judge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "RENDERS_PER_SCAN", 1)
        patch.setattr(evaluate_module, "REAL_RENDERS_PER_SCAN", 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "data"
    copy_raw_data(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(data, tmp_path_factory):
    """A few records as published layouts have them."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "understanding" / "images").mkdir(parents=True)
    (folder / "drawing").mkdir()
    images, scenes = RealPictures(data, "test").every(1, seed=0)
    questions = []
    for index in range(4):
        name, facts = f"images/{index}.png", {**vars(scenes[index]), "unseen": index == 0}
        images[index].save(folder / "understanding" / name)
        for family, setting in (("digit", ""), ("exists", "random"), ("exists", "adversarial")):
            turns = [
                {"from": "human", "value": f"<image>\nIs it {family}?"},
                {"from": "gpt", "value": "Yes."},
            ]
            meta = {"family": family, **facts, "setting": setting}
            questions.append({"id": str(len(questions)), "image": name, "conversations": turns, "meta": meta})
    wishes = [
        {
            "id": str(index),
            "messages": [{"role": "user", "content": "Draw a red seven on white."}],
            "images": [],
            "meta": {**FACTS, "family": "draw", "unseen": index % 2 == 0, "answer": REPLY},
        }
        for index in range(6)
    ]
    (folder / "understanding" / "test.json").write_text(json.dumps(questions))
    (folder / "drawing" / "test.json").write_text(json.dumps(wishes))
    return folder


@pytest.fixture(scope="module")
def processor():
    config = preset("tiny")
    tokenizer = build_text_tokenizer(["USER: Draw a red seven on white. ASSISTANT: Here is"] * 3, config)
    return VargptProcessor.for_config(config, tokenizer, system_prompt="", crop_margin=1.0)


@pytest.fixture(scope="module")
def model(processor):
    """Random weights, but words follow words by hand: the prompt's end, one picture, the reply's end."""
    torch.manual_seed(0)
    config = preset("tiny")
    config.null_prompt = processor.null_prompt()
    model = VargptForConditionalGeneration(config).eval()
    last_word = processor.request([{"role": "user", "content": "Draw."}]).input_ids[-1]
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedded = model.language_model.get_input_embeddings().weight
        head = model.language_model.lm_head.weight.zero_()
        head[config.image_start_token_id] = embedded[last_word]
        head[config.text_config.eos_token_id] = embedded[config.image_end_token_id]
    return model


@pytest.fixture(scope="module")
def model_dir(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(model, processor, folder)
    return folder


def sample(*contents, images=(), **meta):
    roles = ["user", "assistant"] * len(contents)
    messages = tuple(Message(role, content) for role, content in zip(roles, contents, strict=False))
    return Sample("a", messages, tuple(images), "test", meta)


def samples_of(folder):
    return [
        sample
        for kind in ("understanding", "drawing")
        for sample in open_dataset(kind, folder / kind / "test.json", folder / kind, BadRecordLog())
    ]


def wish(**meta):
    return sample("Draw a red seven.", **{**FACTS, "family": "draw", "answer": REPLY, **meta})


def test_an_evaluation_has_every_promised_figure_and_is_the_same_again(model_dir, prepared, data, tmp_path):
    files, heard = [tmp_path / "metrics" / f"{name}.json" for name in "ab"], {}

    first = evaluate(
        model_dir,
        prepared,
        data,
        PARAMS,
        metrics_file=files[0],
        plots_dir=tmp_path / "plots",
        progress=lambda part, done, total: heard.setdefault(part, []).append((done, total)),
    )
    second = evaluate(model_dir, prepared, data, PARAMS, metrics_file=files[1])

    for part, told in heard.items():
        total = told[0][1]
        assert told[0] == (0, total) and told[-1] == (total, total), part
    assert heard["questions"] == [(0, 12), (8, 12), (12, 12)]
    assert {"judge", "drawings", "distances", "reconstructions"} <= heard.keys()
    for section, names in PROMISED.items():
        assert set(names.split()) <= first[section].keys()
    assert {"pope_detail", "draw_and_describe", "intervals"} <= first.keys()
    assert (first["draw"]["n"], first["draw"]["n_unseen"]) == (6, 3)
    assert first["vqa"]["n"] == 12
    assert first["draw"]["without_picture"] == 0
    assert first["judge"]["digit"] > 0.95
    assert first["subject"] == {
        "weights_sha256": manifest_sha256(model_dir),
        "data_md5": data_md5(POINTER),
        "prepared_sha256": prompts_sha256(prepared, "test", samples_of(prepared)),
        "split": "test",
        "questions": 12,
        "drawings": 6,
    }
    assert first == second == json.loads(files[0].read_text()) == json.loads(files[1].read_text())
    for name in ("drawings", "confusion", "targets", "reconstructions"):
        assert Image.open(tmp_path / "plots" / f"{name}.png").width > 300


def test_the_hash_of_a_split_changes_with_its_words_and_its_pictures_and_nothing_else(prepared, tmp_path):
    copy = Path(shutil.copytree(prepared, tmp_path / "prepared"))
    (copy / "understanding" / "train.json").write_text("[]")
    before = prompts_sha256(copy, "test", samples_of(copy))
    assert before == prompts_sha256(prepared, "test", samples_of(prepared))

    picture = copy / "understanding" / "images" / "0.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    repainted = prompts_sha256(copy, "test", samples_of(copy))
    wishes = copy / "drawing" / "test.json"
    wishes.write_text(wishes.read_text().replace("Draw a red seven", "Draw a blue seven", 1))

    assert len({before, repainted, prompts_sha256(copy, "test", samples_of(copy))}) == 3


def test_weights_that_are_not_those_of_their_manifest_are_not_measured(model_dir, prepared, data, tmp_path):
    copy = Path(shutil.copytree(model_dir, tmp_path / "model"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)

    with pytest.raises(ValueError, match=r"model\.safetensors has SHA-256"):
        evaluate(copy, prepared, data, PARAMS)


def test_an_unknown_split_is_refused_by_name(model_dir, prepared, data):
    with pytest.raises(ValueError, match=r"split must be one of .* got 'train'"):
        evaluate(model_dir, prepared, data, PARAMS, "train")


def test_a_test_set_with_a_missing_picture_is_refused(model_dir, prepared, data, tmp_path):
    for kind in ("understanding", "drawing"):
        (tmp_path / kind).mkdir()
        content = (prepared / kind / "test.json").read_text()
        (tmp_path / kind / "test.json").write_text(content)

    with pytest.raises(ValueError, match="understanding"):
        evaluate(model_dir, tmp_path, data, PARAMS)


def test_every_request_has_a_seed_of_its_own_whatever_the_batch(model, processor):
    wishes, heard = [wish()] * 3, []

    together = reply_to(model, processor, wishes, SamplingParams(), 3, heard.append)
    apart = reply_to(model, processor, wishes, SamplingParams(), 2, heard.append)

    assert [reply.picture.tobytes() for reply in together] == [reply.picture.tobytes() for reply in apart]
    assert len({reply.picture.tobytes() for reply in together}) == 3
    assert heard == [3, 2, 3]


def test_a_prompt_reads_as_the_conversation_it_is_cut_from(processor, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    question, answer = "<image>\nWhich digit?", "Seven."
    asked = sample(question, answer, "Which color?", "Red.", images=[ImageRef(tmp_path / "a.png")])

    prompt = processor.request(conversation(asked))

    learned = processor.encode(
        [{"role": message.role, "content": message.content} for message in asked.messages],
        [Image.new("RGB", (32, 32), "red")],
    )
    torch.testing.assert_close(prompt.input_ids, learned.input_ids[: len(prompt.input_ids)])
    torch.testing.assert_close(prompt.pixel_values, learned.pixel_values)
    assert len(prompt.input_ids) < len(learned.input_ids)


def test_expected_words_leave_the_picture_out():
    described = f"{REPLY} The picture shows a red seven on a white background."

    assert expected_words(sample("Which digit?", "Seven.")) == "Seven."
    assert expected_words(wish(answer=described)) == (
        "Here is a red seven on a white background. The picture shows a red seven on a white background."
    )


def test_an_answer_with_a_picture_in_it_is_wrong():
    asked = sample("Which digit?", "Seven.", family="digit", unseen=False)

    assert as_answer(ModelReply(asked, "Seven.", ())).is_right
    assert not as_answer(ModelReply(asked, "Seven.", (NOTHING_DRAWN,))).is_right


def test_only_a_single_picture_is_credited(data):
    judge, held_out = train_judge(data), RealPictures(data, "test")
    scene = as_drawings([ModelReply(wish(), "", ())], judge)[0].scene
    good = held_out.like([scene] * 3, seed=0)

    drawings = as_drawings(
        [ModelReply(wish(), "", tuple(good[:count])) for count in (0, 1, 2)],
        judge,
    )

    assert [drawing.is_right for drawing in drawings] == [False, True, False]
    assert drawings[0].verdict == drawings[2].verdict == Verdict(None, None, None)


def test_psnr_is_that_of_each_picture_as_it_was_decoded(model, processor, data):
    pictures, _ = RealPictures(data, "test").every(1, seed=0)

    whole = reconstruct(model.image_tokenizer, processor, pictures[:6], batch=6)
    parts = [reconstruct(model.image_tokenizer, processor, [image], batch=1) for image in pictures[:6]]

    assert len(whole.pictures) == 6
    assert whole.psnr == pytest.approx(sum(part.psnr for part in parts) / 6, rel=1e-4)
