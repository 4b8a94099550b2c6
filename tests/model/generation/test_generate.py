"""Laws of generation: caches change nothing, batches change nothing, replies hold what was asked."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from model.config import preset
from model.errors import UserError
from model.generation.generate import Request, generate
from model.generation.sampling import GuidanceMode, SamplingParams
from model.modeling import VargptForConditionalGeneration
from model.scales import scale_of_token, scale_offsets
from model.vargpt import TargetImages
from model.visual_decoder import DecoderCache

FIRST_WORD = 7  # after the special tokens


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(preset("tiny")).eval()
    for parameter in model.visual_decoder.parameters():  # no branch may be so weak that a test cannot see it
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def words(count, seed=0):
    return torch.randint(FIRST_WORD, 500, (count,), generator=torch.Generator().manual_seed(seed))


def drawing_sequence(model, prompt):
    config = model.config
    pads = torch.full((config.num_image_tokens,), config.image_pad_token_id)
    start, end = torch.tensor([config.image_start_token_id]), torch.tensor([config.image_end_token_id])
    return torch.cat([prompt, start, pads, end])[None]


@torch.no_grad()
def test_visual_decoder_scale_by_scale_with_a_cache_equals_one_masked_pass(model):
    decoder = model.visual_decoder
    x = torch.randn(2, model.config.num_image_tokens, decoder.config.width)
    cond = torch.randn(2, decoder.config.width)
    cache, offsets = DecoderCache(decoder.config.depth), scale_offsets(decoder.scales)

    whole = decoder.predict(x, cond)
    parts = [decoder.predict(x[:, a:b], cond, cache) for a, b in pairwise(offsets)]

    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_greedy_drawing_with_caches_equals_one_teacher_forced_pass(model):
    prompt = words(9)
    params = SamplingParams(image_temperature=0, guidance_mode=GuidanceMode.NONE, max_new_tokens=1)
    picture = generate(model, [Request(prompt, params=params, force_image=True)])[0].images[0]
    input_ids = drawing_sequence(model, prompt)
    codes = torch.zeros(1, model.config.num_image_tokens, dtype=torch.long)

    # Each pass settles one more scale: what is predicted from settled scales no longer changes.
    for _ in model.config.scales:
        codes = model.predict(input_ids, target_images=TargetImages(codes=codes)).image_logits.argmax(-1)

    expected = model.image_tokenizer.decode(model.image_tokenizer.split(codes))[0]
    torch.testing.assert_close(picture, (expected + 1) / 2)


def test_a_whole_number_guides_as_the_same_fraction_does(model):
    whole, fraction = (
        generate(model, [Request(words(4), params=SamplingParams(guidance=guidance), force_image=True)])
        for guidance in (3, 3.0)
    )

    assert torch.equal(whole[0].images[0], fraction[0].images[0])


def test_a_request_gets_the_same_reply_whatever_else_is_in_the_batch(model):
    params = SamplingParams(text_temperature=1.0, max_new_tokens=5, max_images=2)
    requests = [
        Request(
            words(3 + 2 * n, n),
            params=replace(params, seed=n, guidance_mode=mode, fine_guidance=n / 2),
            force_image=n % 3 != 0,
        )
        for n, mode in enumerate([*GuidanceMode, *GuidanceMode])
    ]
    with_image = torch.cat([words(2), torch.full((17,), model.config.image_token_id), words(5)])
    requests.append(Request(with_image, torch.randn(1, 3, 32, 32), replace(params, seed=9), force_image=True))

    together = generate(model, requests)
    alone = [generate(model, [request])[0] for request in requests]

    for one, many in zip(alone, together, strict=True):
        assert one.token_ids == many.token_ids
        assert all(torch.equal(a, b) for a, b in zip(one.images, many.images, strict=True))


def test_a_smoothed_picture_is_the_same_within_rounding_whatever_else_is_in_the_batch(model):
    params = SamplingParams(max_new_tokens=1)
    requests = [
        Request(words(3 + n, n), params=replace(params, seed=n, smoothing=n % 2 == 0), force_image=True)
        for n in range(6)
    ]

    together = generate(model, requests)

    for request, reply in zip(requests, together, strict=True):
        [alone] = generate(model, [request])
        torch.testing.assert_close(reply.images[0], alone.images[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_guidance_pushes_the_coarsest_scale_and_falls_steeply_to_fine_guidance_at_the_finest(model):
    prompt = words(9)
    params = SamplingParams(image_temperature=0, guidance=3.0, fine_guidance=1.5, max_new_tokens=1)
    picture = generate(model, [Request(prompt, params=params, force_image=True)])[0].images[0]
    nothing = torch.tensor(model.config.null_prompt or [], dtype=torch.long)
    sequences = [drawing_sequence(model, ids) for ids in (prompt, nothing)]
    codes = torch.zeros(1, model.config.num_image_tokens, dtype=torch.long)
    weight_of_scale = torch.tensor([params.guidance_weight(k / 3) for k in range(4)])
    weight = weight_of_scale[scale_of_token(model.config.scales, codes.device)][:, None]

    assert weight_of_scale[[0, 3]].tolist() == [3.0, 1.5]
    assert 1.75 > weight_of_scale[1] > weight_of_scale[2] > 1.5
    for _ in model.config.scales:
        cond, uncond = (
            model.predict(
                ids, target_images=TargetImages(codes=codes, unconditional=torch.tensor([n == 1]))
            ).image_logits
            for n, ids in enumerate(sequences)
        )
        codes = (uncond + weight * (cond - uncond)).argmax(-1)

    expected = model.image_tokenizer.decode(model.image_tokenizer.split(codes))[0]
    torch.testing.assert_close(picture, (expected + 1) / 2)


def test_another_seed_draws_another_picture(model):
    def picture(seed):
        params = SamplingParams(seed=seed, max_new_tokens=1)
        return generate(model, [Request(words(5), params=params, force_image=True)])[0].images[0]

    assert torch.equal(picture(1), picture(1))
    assert not torch.equal(picture(1), picture(2))


def test_a_reply_holds_no_more_images_and_words_than_allowed(model):
    start = model.config.image_start_token_id
    head = model.language_model.lm_head.weight
    saved = head.detach().clone()
    head.data[start] = head.data.mean(0) * 0 + 10 * torch.sign(saved.mean(0))
    params = SamplingParams(text_temperature=5.0, max_new_tokens=6, max_images=2)
    replies = generate(model, [Request(words(4, n), params=replace(params, seed=n)) for n in range(6)])
    head.data.copy_(saved)

    assert all(len(reply.images) <= 2 for reply in replies)
    assert any(reply.images for reply in replies)
    for reply in replies:
        markers = 2 * len(reply.images)
        assert len(reply.token_ids) - markers <= 6
        assert reply.token_ids.count(start) == len(reply.images)


def test_events_tell_every_token_scale_and_image_in_order(model):
    events = []
    params = SamplingParams(max_new_tokens=3)
    reply = generate(model, [Request(words(4), params=params, force_image=True)], events.append)[0]

    assert [event.token_id for event in events if event.type == "token"] == reply.token_ids
    assert [event.scale for event in events if event.type == "scale"] == [0, 1, 2, 3]
    assert [event.type for event in events][:6] == ["token", "scale", "scale", "scale", "scale", "image"]


def test_a_stopped_request_ends_and_the_others_go_on(model):
    params = SamplingParams(max_new_tokens=4)
    requests = [Request(words(4, n), params=params) for n in range(2)]

    stopped, other = generate(model, requests, should_stop=lambda index: index == 0)

    assert stopped.finish_reason == "cancelled"
    assert other.finish_reason in ("length", "stop")
    assert other.token_ids == generate(model, requests[1:])[0].token_ids


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(ValueError, match="600 tokens; the context holds 512"):
        generate(model, [Request(words(600))])


@pytest.mark.parametrize(
    ("input_ids", "said"),
    [
        (torch.zeros(0, dtype=torch.long), r"at least one token id, \(T,\), got \(0,\)"),
        (torch.zeros(1, 5, dtype=torch.long), r"got \(1, 5\) of torch.int64"),
        (torch.zeros(5), r"got \(5,\) of torch.float32"),
        (torch.tensor([7, 5000]), "outside of the vocabulary, which are 0 to 1023"),
        (torch.tensor([7, -1]), "outside of the vocabulary"),
    ],
)
def test_a_prompt_that_is_none_is_refused(model, input_ids, said):
    with pytest.raises(UserError, match=said):
        generate(model, [Request(words(3)), Request(input_ids)])


def test_an_image_is_not_forced_where_none_is_allowed(model):
    params = SamplingParams(max_images=0, max_new_tokens=2)
    forced, free = (Request(words(4), params=params, force_image=force) for force in (True, False))

    assert generate(model, [forced])[0].token_ids == generate(model, [free])[0].token_ids
    assert generate(model, [forced])[0].images == []


@torch.no_grad()
def test_codes_given_and_pixels_given_are_the_same_pass(model):
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    input_ids = drawing_sequence(model, words(4))

    from_pixels = model(input_ids, generation_pixel_values=pixels).image_logits
    from_codes = model(input_ids, codes=torch.cat(model.image_tokenizer.encode(pixels), dim=1)).image_logits

    assert torch.equal(from_pixels, from_codes)
