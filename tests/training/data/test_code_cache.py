"""Laws of cached codes: those that the tokenizer would compute, each once, by any number of processes."""

import pytest
import torch

from model.errors import UserError
from model.modeling import VargptForConditionalGeneration
from tests.training.data.parts import CONFIG, dataset_params, folders_of, processor, write_conversations
from tests.training.volume import ROOT
from training.data import code_encoding
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.code_cache import CodeCache, open_codes, tokenizer_key
from training.data.code_encoding import drawn_pictures, encode_pictures
from training.data.prepared_data import index_datasets, open_mixture
from training.params import load_params

KINDS = ["text", "drawing", "question", "interleaved", "drawing", "drawing", "interleaved", "text"]
NUM_DRAWN = 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VargptForConditionalGeneration(CONFIG).eval()


@pytest.fixture
def data(tmp_path):
    return write_conversations(tmp_path / "set", KINDS)


def mixture_of(path, is_indexed=True):
    folders = folders_of(path.parents[1])
    if is_indexed:
        index_datasets([dataset_params(str(path))], folders, processor(), 1, 1.0)
    return open_mixture([dataset_params(str(path))], folders, 0.0, 0, BadRecordLog())


def encode(path, model, rank=0, world_size=1, batch=2):
    return encode_pictures(
        mixture_of(path).datasets,
        model.image_tokenizer,
        processor(),
        path.parents[1] / "codes",
        rank,
        world_size,
        batch,
    )


def stage_params(**changes):
    changes = {"batch": 8, "code_corruption": 0.0, "softness": 0.0, "cached_codes": True, **changes}
    return load_params(ROOT / "params.yaml", "smoke").stage3.model_copy(update=changes)


def loader_of(path, model, codes, is_indexed=True, **changes):
    mixture = mixture_of(path, is_indexed)
    params = stage_params(**changes)
    cache = open_codes(codes, model.image_tokenizer, processor(), params)
    return BatchLoader(
        mixture, processor(), CONFIG.image_tokenizer_config, params, 0, BadRecordLog(), 1.0, cache
    )


@pytest.mark.parametrize("pack_tokens", [0, 512])
@pytest.mark.parametrize("is_indexed", [True, False])
def test_codes_from_the_cache_are_those_computed_from_pixels(tmp_path, data, model, is_indexed, pack_tokens):
    encode(data, model)
    cached = loader_of(data, model, tmp_path / "codes", is_indexed, drop_prompt=0.5, pack_tokens=pack_tokens)
    pixels = loader_of(
        data,
        model,
        tmp_path / "codes",
        is_indexed,
        drop_prompt=0.5,
        pack_tokens=pack_tokens,
        cached_codes=False,
    )

    num_drawn = 0
    for step in range(3):
        for batch, other in zip(cached.micro_batches(step), pixels.micro_batches(step), strict=True):
            if not len(other["generation_pixel_values"]):
                continue
            num_drawn += len(batch["codes"])
            assert "replacements" not in batch and "generation_pixel_values" not in batch
            expected = torch.cat(model.image_tokenizer.encode(other["generation_pixel_values"]), dim=1)
            assert torch.equal(batch["codes"], expected)
            assert torch.equal(batch["input_ids"], other["input_ids"])
            with torch.no_grad():
                sums = model.loss_sums(**batch), model.loss_sums(**other)
            torch.testing.assert_close(sums[0].image_by_scale, sums[1].image_by_scale, rtol=0, atol=1e-5)
    assert num_drawn > 10


def test_each_picture_is_encoded_once_and_input_pictures_never(data, model):
    drawn = {digest for digest, _ in drawn_pictures(mixture_of(data).datasets)}
    folder, count = encode(data, model)

    assert len(drawn) == NUM_DRAWN == count == len(CodeCache(folder))
    assert encode(data, model) == (folder, 0)


def test_processes_share_the_pictures(tmp_path, data, model):
    folder, count = encode(data, model)
    expected = CodeCache(folder)

    other = write_conversations(tmp_path / "other" / "set", KINDS)
    shares = [encode(other, model, rank, 3) for rank in range(3)]

    assert sum(share[1] for share in shares) == count
    found = CodeCache(shares[0][0])
    for digest, _ in drawn_pictures(mixture_of(data).datasets):
        assert torch.equal(found.get(digest), expected.get(digest))


def test_a_run_that_was_killed_computes_only_what_is_left(data, model, monkeypatch):
    monkeypatch.setattr(code_encoding, "PICTURES_PER_PART", 2)
    compute, computed = code_encoding._codes, []

    def killed_later(tokenizer, pixels):
        if len(computed) == 4:
            raise KeyboardInterrupt
        computed.extend(pixels)
        return compute(tokenizer, pixels)

    monkeypatch.setattr(code_encoding, "_codes", killed_later)
    with pytest.raises(KeyboardInterrupt):
        encode(data, model)
    monkeypatch.setattr(code_encoding, "_codes", compute)

    folder, count = encode(data, model)

    assert count == NUM_DRAWN - 4 and len(CodeCache(folder)) == NUM_DRAWN


def test_another_tokenizer_or_another_crop_has_codes_of_its_own(model, monkeypatch):
    before = tokenizer_key(model.image_tokenizer, processor())
    with torch.no_grad():
        model.image_tokenizer.quantizer.codebook.weight[0, 0] += 1
        changed = tokenizer_key(model.image_tokenizer, processor())
        model.image_tokenizer.quantizer.codebook.weight[0, 0] -= 1
    monkeypatch.setattr(processor(), "crop_margin", 1.5)

    assert len({before, changed, tokenizer_key(model.image_tokenizer, processor())}) == 3


def test_a_stage_without_codes_says_how_to_get_them(tmp_path, data, model):
    with pytest.raises(UserError, match=r"no codes of this image tokenizer.*vargpt data encode"):
        loader_of(data, model, tmp_path / "codes")

    encode(data, model)
    more = write_conversations(tmp_path / "more", ["drawing"] * 9)
    loader = loader_of(more, model, tmp_path / "codes")
    with pytest.raises(UserError, match=r"no codes of the picture that drawing-. draws.*vargpt data encode"):
        loader.micro_batches(0)


def test_what_needs_pixels_is_refused_with_codes(tmp_path, data, model):
    encode(data, model)

    for change in ({"softness": 0.1}, {"code_corruption": 0.1}):
        with pytest.raises(UserError, match="they need pixels"):
            loader_of(data, model, tmp_path / "codes", **change)
