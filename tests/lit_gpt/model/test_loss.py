"""The chunked head and loss against the plain formula in float64."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gpt.model import loss as loss_module
from lit_gpt.model.loss import chunk_tokens, chunked_cross_entropy, segment_means, token_losses


def plain(hidden, weight, labels):
    return F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")


def example(tokens, width=16, vocab=50, masked=0, scale=1.0):
    generator = torch.Generator().manual_seed(tokens)
    hidden = (torch.randn(tokens, width, generator=generator) * scale).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    labels[torch.randperm(tokens, generator=generator)[:masked]] = -100
    return hidden, weight, labels


def compare(hidden, weight, labels, tolerance):
    loss = chunked_cross_entropy(hidden, weight, labels)
    expected = plain(hidden, weight, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance)
    found = torch.autograd.grad(loss * 0.25, (hidden, weight))
    wanted = torch.autograd.grad(expected * 0.25, (hidden, weight))
    for found_part, wanted_part in zip(found, wanted, strict=True):
        error = (found_part.double() - wanted_part).abs().max()
        assert error <= tolerance * wanted_part.abs().max().clamp(min=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 45), st.floats(0, 1))
def test_equals_the_plain_formula(tokens, chunk, share_masked):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
        compare(*example(tokens, masked=int(share_masked * tokens)), tolerance=1e-5)


def test_all_masked_is_zero_with_zero_gradients():
    hidden, weight, labels = example(8, masked=8)
    loss = chunked_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_large_logits_do_not_overflow():
    compare(*example(20, scale=300.0), tolerance=1e-5)


def test_float64_is_exact():
    hidden, weight, labels = (
        x.detach().double() if x.is_floating_point() else x for x in example(9, masked=2)
    )
    torch.autograd.gradcheck(
        lambda h, w: chunked_cross_entropy(h, w, labels), (hidden.requires_grad_(), weight.requires_grad_())
    )


def test_without_gradients_the_loss_is_the_same():
    inputs = example(30, masked=3)
    with torch.no_grad():
        alone = chunked_cross_entropy(*inputs)
    assert not alone.requires_grad
    assert torch.equal(alone, chunked_cross_entropy(*inputs).detach())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 45), st.floats(0, 1))
def test_the_means_of_segments_are_those_of_their_tokens_losses(lengths, chunk, share_masked):
    hidden, weight, labels = example(sum(lengths), masked=int(share_masked * sum(lengths)))
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss_module.CHUNK_TOKENS, "cpu", chunk)
        total, losses = token_losses(hidden, weight, labels)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="none")
    torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total, losses.sum())
    assert total.requires_grad
    assert not losses.requires_grad
    segments = zip(exact.split(lengths), labels.split(lengths), strict=True)
    wanted = [losses[labels != -100].mean() for losses, labels in segments]
    means = segment_means(losses, labels, bounds)
    assert means.dtype == torch.float16
    torch.testing.assert_close(means.double(), torch.stack(wanted), rtol=1e-3, atol=1e-4, equal_nan=True)


def test_bf16_products_with_fp32_sums():
    """The weights' gradient stays fp32, and many chunks lose nothing to rounding."""
    hidden, weight, labels = example(4000, masked=100)
    loss = chunked_cross_entropy(hidden.bfloat16(), weight, labels)
    grad_hidden, grad_weight = torch.autograd.grad(loss, (hidden, weight))
    expected = plain(hidden, weight, labels)
    wanted_hidden, wanted_weight = torch.autograd.grad(expected, (hidden, weight))
    assert loss.dtype == grad_weight.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 2e-3
    assert (grad_weight - wanted_weight).norm() / wanted_weight.norm() < 1e-2
    assert (grad_hidden - wanted_hidden).norm() / wanted_hidden.norm() < 1e-2


def test_the_gradient_of_a_nearly_certain_target_survives_bf16():
    logits = torch.tensor([[9.0, 0.0]], dtype=torch.bfloat16)
    _, gradient = loss_module._loss_and_gradient(logits, torch.tensor([[0]]), torch.float32, True)
    exact = torch.tensor([9.0, 0.0]).softmax(0)[0].double() - 1
    assert abs(gradient[0, 0].item() / exact.item() - 1) < 5e-3


def test_never_are_all_logits_there_at_once(monkeypatch):
    sizes = []
    original = loss_module._loss_and_gradient

    def spy(logits, *rest):
        sizes.append(tuple(logits.shape))
        return original(logits, *rest)

    monkeypatch.setattr(loss_module, "_loss_and_gradient", spy)
    chunked_cross_entropy(*example(1200))
    assert sizes == [(512, 50), (512, 50), (176, 50)]


@pytest.mark.parametrize(("gigabytes", "expected"), [(24, 8192), (40, 8192), (80, 16384), (141, 16384)])
def test_chunks_on_a_gpu_go_by_its_memory(monkeypatch, gigabytes, expected):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert chunk_tokens(torch.device("cuda", 0)) == expected


def test_torch_has_the_product_that_adds_to_fp32():
    """CUDA only; where it runs, `test_on_a_gpu` covers it."""
    assert "dtype_out" in torch.ops.aten.addmm.overloads()


def test_compiled_as_on_a_gpu_it_is_the_same(monkeypatch):
    hidden, weight, labels = example(40, masked=5)
    expected = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels), (hidden, weight))
    compiled = torch.compile(
        loss_module._loss_and_gradient, dynamic=False, fullgraph=True, backend="aot_eager"
    )
    monkeypatch.setattr(loss_module, "_loss_and_gradient", compiled)
    found = torch.autograd.grad(chunked_cross_entropy(hidden, weight, labels), (hidden, weight))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the compiled path")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    hidden, weight, labels = example(20_000, width=64, vocab=1000, masked=50)
    on_gpu = [x.detach().to("cuda") for x in (hidden, weight)]
    inputs = [x.to(dtype).requires_grad_() for x in on_gpu]
    loss = chunked_cross_entropy(*inputs, labels.to("cuda"))
    found = torch.autograd.grad(loss, inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = F.cross_entropy(exact[0] @ exact[1].T, labels.to("cuda"), reduction="sum")
    wanted = torch.autograd.grad(expected, exact)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    assert abs(loss.item() / expected.item() - 1) < tolerance
    for one, other in zip(found, wanted, strict=True):
        assert (one.double() - other).norm() / other.norm() < tolerance
