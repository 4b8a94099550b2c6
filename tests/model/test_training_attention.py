"""Laws of attention in training: the quickest kernel there is, and samples of a row apart whichever it is."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, modeling_flash_attention_utils

from model import training_attention as kernels
from model.backbones import LanguageModel
from model.batches import pad
from model.training_attention import sample_bounds, training_attention

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LENGTHS = (7, 1, 12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(copy.deepcopy(CONFIG))


def samples(device="cpu", dtype=torch.float32):
    """Embedded samples of several lengths."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(length, 64, generator=draw).to(device, dtype) for length in LENGTHS]


def packed_states(model, rows):
    positions = torch.cat([torch.arange(len(row), device=row.device) for row in rows])
    return model.states(torch.cat(rows)[None], position_ids=positions[None], use_cache=False)[0]


def states_alone(model, rows):
    return torch.cat([model.states(row[None], use_cache=False)[0] for row in rows])


def flash_varlen(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
):
    """What flash-attn's function of this name computes, as it documents it, on a CPU."""
    assert cu_seqlens_q.dtype is torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert max_seqlen_q == max_seqlen_k == int(cu_seqlens_q.diff().max())
    attended = []
    for start, end in pairwise(cu_seqlens_q.tolist()):
        sample = (x[start:end].transpose(0, 1) for x in (q, k, v))
        attended.append(
            F.scaled_dot_product_attention(*sample, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        )
    return torch.cat(attended, dim=1).transpose(0, 1)


@pytest.fixture
def flash_on_cpu(monkeypatch):
    """transformers with flash-attn's function as it is documented, since the real one needs a GPU."""
    library = modeling_flash_attention_utils
    monkeypatch.setattr(library, "_loaded_implementation", "flash_attention_2")
    monkeypatch.setattr(library, "_flash_varlen_fn", flash_varlen)
    monkeypatch.setattr(library, "_pad_fn", library._pad_input)
    monkeypatch.setattr(library, "_unpad_fn", library._unpad_input)
    process = library._lazy_define_process_function(flash_varlen)
    monkeypatch.setattr(library, "_process_flash_kwargs_fn", process)


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "sdpa_by_sample"])
def test_samples_of_a_row_have_the_states_that_they_have_alone(model, kernel):
    expected = states_alone(model, samples())

    model.set_attn_implementation(kernel)

    torch.testing.assert_close(packed_states(model, samples()), expected, rtol=1e-5, atol=1e-6)


def test_flash_attn_is_told_where_samples_of_a_row_begin(model, flash_on_cpu):
    expected = states_alone(model, samples())

    model.config._attn_implementation = "flash_attention_2"

    torch.testing.assert_close(packed_states(model, samples()), expected, rtol=1e-5, atol=1e-6)


def test_flash_attn_skips_padding(model, flash_on_cpu):
    rows = samples()
    mask = pad([torch.ones(len(row), dtype=torch.long) for row in rows], 0)
    expected = states_alone(model, rows)

    model.config._attn_implementation = "flash_attention_2"
    found = model.states(pad(rows, 0), attention_mask=mask, use_cache=False)

    torch.testing.assert_close(found[mask.bool()], expected, rtol=1e-5, atol=1e-6)


def test_padded_batches_have_the_bits_of_pytorchs_kernel(model):
    mask = pad([torch.ones(len(row), dtype=torch.long) for row in samples()], 0)
    states = partial(model.states, pad(samples(), 0), attention_mask=mask, use_cache=False)
    expected = states()

    with training_attention(model, "no"):
        found = states()

    assert torch.equal(found, expected)


def test_no_attention_across_samples_is_computed(model, monkeypatch):
    lengths = []
    kernel = F.scaled_dot_product_attention

    def counted(q, k, v, attn_mask=None, **named):
        lengths.append((q.shape[2], k.shape[2], attn_mask))
        return kernel(q, k, v, attn_mask=attn_mask, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    with training_attention(model, "no"):
        packed_states(model, samples())

    assert lengths == [(length, length, None) for length in LENGTHS] * CONFIG.num_hidden_layers


@pytest.mark.parametrize(
    ("device", "is_bfloat16", "has_flash", "is_compiled", "expected"),
    [
        ("cuda", True, True, False, "flash_attention_2"),
        ("cuda", True, True, True, "flash_attention_2"),
        ("cuda", False, True, False, "sdpa_by_sample"),
        ("cuda", True, False, False, "sdpa_by_sample"),
        ("cuda", True, False, True, "sdpa"),
        ("cpu", True, False, False, "eager"),
        ("cpu", False, False, False, "sdpa_by_sample"),
    ],
)
def test_each_device_and_precision_has_its_quickest_kernel(
    monkeypatch, device, is_bfloat16, has_flash, is_compiled, expected
):
    monkeypatch.setattr(kernels, "is_flash_attn_2_available", lambda: has_flash)

    assert kernels._kernel(device, is_bfloat16, is_compiled) == expected


def test_after_training_a_model_attends_as_before(model):
    with training_attention(model, "bf16"):
        assert model.config._attn_implementation == "eager"

    assert model.config._attn_implementation == "sdpa"


def test_a_batch_that_is_not_packed_has_no_bounds():
    assert sample_bounds("sdpa_by_sample", None) == {}


@pytest.mark.gpu
def test_flash_attn_is_equal_where_it_is_installed(model):
    pytest.importorskip("flash_attn")
    model.cuda().bfloat16()
    rows = samples("cuda", torch.bfloat16)
    expected = packed_states(model, rows)

    with training_attention(model, "bf16"):
        assert model.config._attn_implementation == "flash_attention_2"
        found = packed_states(model, rows)

    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
