"""Laws of the text head: in chunks as at once, few logits in memory, and only where text has a weight."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from model import backbones, fused_kernels, text_head
from model.backbones import LanguageModel
from model.config import preset
from model.modeling import VargptForConditionalGeneration
from model.text_head import TextHead

CONFIG = preset("tiny")
IDS = torch.tensor([[7, 8, 9, 10, 11, 12], [9, 9, 8, 7, 7, 10]])


@pytest.fixture
def head():
    torch.manual_seed(0)
    return TextHead(32, 500, bias=False)


def nats_and_gradients(head, hidden, targets):
    hidden = hidden.clone().requires_grad_(True)
    head.zero_grad()
    nats = head(hidden, targets)
    (3 * nats).backward()
    return nats.detach(), hidden.grad, head.weight.grad.clone()


@pytest.mark.parametrize("chunk", [1, 7, 100, 10_000])
def test_in_chunks_loss_and_gradients_are_those_of_all_logits_at_once(head, monkeypatch, chunk):
    hidden, targets = torch.randn(100, 32), torch.randint(500, (100,))
    expected = F.cross_entropy(F.linear(hidden, head.weight), targets, reduction="sum")
    at_once = nats_and_gradients(head, hidden, targets)
    monkeypatch.setattr(text_head, "CHUNK_LOGITS", chunk * 500)

    in_chunks = nats_and_gradients(head, hidden, targets)

    assert torch.equal(at_once[0], expected.detach())
    for found, other in zip(in_chunks, at_once, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-6, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor that is made within the block has."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(getattr(self, "elements", 0), value.numel())
        return out


def test_no_more_logits_than_a_chunk_are_made_forward_or_backward(head, monkeypatch):
    monkeypatch.setattr(text_head, "CHUNK_LOGITS", 40 * 500)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nats_and_gradients(head, torch.randn(1000, 32), torch.randint(500, (1000,)))

    assert largest.elements <= 1000 * 32
    assert max(kept) <= 40 * 500, "what is kept for the backward pass is states, not logits"
    assert sum(kept) < 1000 * 500


def test_a_head_without_targets_gives_logits(head):
    hidden = torch.randn(2, 3, 32)

    assert torch.equal(head(hidden), F.linear(hidden, head.weight))
    assert float(head(hidden[:0, 0], torch.empty(0, dtype=torch.long))) == 0.0


def test_the_head_draws_no_random_numbers_and_keeps_weights_and_names():
    torch.manual_seed(0)
    ours = LanguageModel(CONFIG.text_config)
    number = torch.rand(1)
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(CONFIG.text_config)

    assert torch.equal(number, torch.rand(1))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


def test_the_whole_model_starts_from_the_weights_that_it_had_without_this_head(monkeypatch):
    torch.manual_seed(0)
    ours = VargptForConditionalGeneration(CONFIG).state_dict()
    monkeypatch.setattr(backbones, "with_text_head", lambda linear: linear)
    torch.manual_seed(0)
    plain = VargptForConditionalGeneration(CONFIG).state_dict()

    assert list(ours) == list(plain)
    assert all(torch.equal(weight, plain[name]) for name, weight in ours.items())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VargptForConditionalGeneration(CONFIG)


def test_text_that_is_only_measured_has_its_loss_and_no_gradient(model):
    learned = model.loss_sums(IDS, IDS)
    measured = model.loss_sums(IDS, IDS, text="measured")

    assert learned.text.requires_grad and not measured.text.requires_grad
    assert torch.equal(measured.text, learned.text) and measured.num_text == learned.num_text == 10


def test_without_text_the_head_is_not_computed_and_nothing_is_counted(model):
    calls = []
    handle = model.language_model.lm_head.register_forward_hook(lambda *_: calls.append(1))

    sums = model.loss_sums(IDS, IDS, text="none")
    handle.remove()

    assert not calls and float(sums.text) == 0.0 and int(sums.num_text) == 0


@pytest.mark.gpu
def test_the_fused_loss_is_equal_where_it_is_installed():
    pytest.importorskip("liger_kernel")
    torch.manual_seed(0)
    head = TextHead(256, 5000, bias=False).cuda()
    hidden, targets = torch.randn(300, 256).cuda(), torch.randint(5000, (300,)).cuda()
    found = nats_and_gradients(head, hidden, targets)
    fused, fused_kernels.LigerFusedLinearCrossEntropyLoss = (
        fused_kernels.LigerFusedLinearCrossEntropyLoss,
        None,
    )
    try:
        expected = nats_and_gradients(head, hidden, targets)
    finally:
        fused_kernels.LigerFusedLinearCrossEntropyLoss = fused
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)
