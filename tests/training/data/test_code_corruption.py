"""Laws of code corruption: its share, the same on any rank, and targets that correct what was replaced."""

import pytest
import torch

from model.config import preset
from model.image_tokenizer import ImageTokenizer, teacher_forcing
from model.modeling import VargptForConditionalGeneration
from model.processing import VargptProcessor
from model.text_tokenizer import build_text_tokenizer
from tests.training.volume import ROOT
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.code_corruption import random_replacements
from training.data.mixture import Mixture
from training.data.samples import ImageRef, Message, Sample
from training.params import load_params

CONFIG = preset("tiny").image_tokenizer_config


@pytest.fixture(scope="module")
def tokenizer():
    """Untrained, but with a codebook of the same standard deviation as the latents."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(CONFIG).eval().requires_grad_(False)
    codebook = tokenizer.quantizer.codebook.weight
    codebook.copy_(torch.randn_like(codebook) * tokenizer.latent(torch.rand(64, 3, 32, 32) * 2 - 1).std())
    return tokenizer


def random_images(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_without_replacements_codes_and_inputs_are_those_of_the_tokenizer(tokenizer):
    none = torch.full((8, 30), -1)

    codes, seen, _ = teacher_forcing(tokenizer, random_images(8), none)

    expected_codes, expected_seen, _ = teacher_forcing(tokenizer, random_images(8), None)
    assert torch.equal(codes, expected_codes)
    torch.testing.assert_close(seen, expected_seen)


def test_the_target_codes_of_later_scales_correct_replaced_ones(tokenizer):
    latent = tokenizer.latent(random_images(64))
    replacements = torch.full((64, 30), -1)
    replacements[:, :5] = torch.randint(
        CONFIG.codebook_size, (64, 5), generator=torch.Generator().manual_seed(2)
    )

    codes = tokenizer.quantizer.encode_with_replacements(latent, tokenizer.split(replacements)).codes
    corrected = tokenizer.split(torch.where(replacements < 0, torch.cat(codes, dim=1), replacements))
    uncorrected = tokenizer.split(
        torch.where(replacements < 0, torch.cat(tokenizer.quantizer.encode(latent), dim=1), replacements)
    )

    errors = [
        (tokenizer.quantizer.canvas(codes) - latent).square().mean() for codes in (corrected, uncorrected)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_a_replaced_code_changes_only_what_later_scales_see(tokenizer):
    replacements = torch.full((1, 30), -1)
    replacements[0, 7] = 3

    clean = teacher_forcing(tokenizer, random_images(1), torch.full((1, 30), -1))
    codes, seen, _ = teacher_forcing(tokenizer, random_images(1), replacements)

    assert torch.equal(codes[:, :14], clean[0][:, :14])
    assert torch.equal(seen[:, :13], clean[1][:, :13])
    assert not torch.equal(seen[:, 13:], clean[1][:, 13:])


def test_replacements_are_refused_where_codes_are_given():
    codes = torch.zeros(1, 30, dtype=torch.long)
    model = VargptForConditionalGeneration(preset("tiny"))

    input_ids = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="replacements and softness go with generation_pixel_values"):
        model.loss_sums(input_ids, input_ids, codes=codes, replacements=codes)


def test_the_share_of_replaced_codes_is_uniform_up_to_the_largest():
    replacements = random_replacements(4000, CONFIG, 0.4, torch.Generator().manual_seed(0))

    shares = (replacements >= 0).float().mean(1)
    assert shares.mean() == pytest.approx(0.2, abs=0.01)
    assert (shares < 0.1).float().mean() > 0.15 < (shares > 0.3).float().mean()
    assert set(replacements.unique().tolist()) == set(range(-1, CONFIG.codebook_size))
    assert (random_replacements(10, CONFIG, 0.0) == -1).all()


def test_a_sample_has_the_same_replacements_on_any_rank(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    drawing = (Message("user", "Draw"), Message("assistant", "Here: <image_gen>"))
    samples = [Sample(str(n), drawing, (ImageRef(tmp_path / "red.png"),), "drawing", {}) for n in range(8)]
    config = preset("tiny")
    processor = VargptProcessor.for_config(config, build_text_tokenizer(["Draw Here:"], config))
    params = load_params(ROOT / "params.yaml", "smoke").stage3
    mixture = Mixture([(samples, 1.0)], 0)
    loader = BatchLoader(mixture, processor, CONFIG, params, 0, BadRecordLog(), bad_record_share=1.0)

    def replacements(rank, world_size):
        return torch.cat([part["replacements"] for part in loader.micro_batches(3, rank, world_size)])

    one_rank, two_ranks = replacements(0, 1), torch.cat([replacements(rank, 2) for rank in range(2)])
    assert (one_rank >= 0).any()
    assert sorted(one_rank.tolist()) == sorted(two_ranks.tolist())
    assert not torch.equal(one_rank, torch.cat([part["replacements"] for part in loader.micro_batches(4)]))
