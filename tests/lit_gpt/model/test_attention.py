"""Attention inside documents against a float64 loop, and the choice of its kernel."""

import itertools
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_gpt.cli import InputError
from lit_gpt.model import attention as attention_module
from lit_gpt.model.attention import Documents, attention, choose_attention

T = 96
OPS = torch.ops


@pytest.fixture(autouse=True)
def _no_choice_made_yet(monkeypatch):
    monkeypatch.setattr(attention_module, "_flash", None)


AWKWARD_BOUNDS = {
    "one full row": [0, T],
    "rows of equal length": [0, 32, 64, 96],
    "single tokens at both edges": [0, 1, T - 1, T],
    "only single tokens": list(range(T + 1)),
    "a run between others": [0, 5, 25, 45, 65, 66, T],
}


def naive(q, k, v, bounds):
    """Every query by itself, in float64."""
    group = q.shape[1] // k.shape[1]
    rows = []
    for start, stop in itertools.pairwise(bounds):
        for position in range(start, stop):
            keys = k[start : position + 1].repeat_interleave(group, dim=1)
            values = v[start : position + 1].repeat_interleave(group, dim=1)
            scores = (q[position] * keys).sum(-1) / q.shape[-1] ** 0.5
            rows.append((scores.softmax(0)[..., None] * values).sum(0))
    return torch.stack(rows)


def check_against_naive(bounds, heads, groups, width, device="cpu", dtype=torch.float32, tolerance=1e-5):
    generator = torch.Generator().manual_seed(0)
    tokens = bounds[-1]
    shapes = [(tokens, heads, width), (tokens, groups, width), (tokens, groups, width)]
    exact = [torch.randn(shape, generator=generator).to(dtype).double().requires_grad_() for shape in shapes]
    grad_out = torch.randn(shapes[0], generator=generator).to(dtype)
    expected = naive(*exact, bounds)
    expected_grads = torch.autograd.grad(expected, exact, grad_out.double())

    inputs = [x.detach().to(device, dtype).requires_grad_() for x in exact]
    documents = Documents(torch.tensor(bounds, dtype=torch.int32, device=device), tokens)
    out = attention(*inputs, documents)
    grads = torch.autograd.grad(out, inputs, grad_out.to(device))
    for found, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = (found.double().cpu() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)
        assert error < tolerance


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bounds", AWKWARD_BOUNDS.values(), ids=AWKWARD_BOUNDS.keys())
def test_outputs_and_gradients_equal_the_naive_loop(bounds, groups, width):
    check_against_naive(bounds, heads=4, groups=groups, width=width)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.sampled_from([1, 3, 6]))
def test_any_bounds(lengths, groups):
    bounds = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    check_against_naive(bounds, heads=6, groups=groups, width=8)


def test_documents_longer_than_the_kernels_blocks():
    check_against_naive([0, 1, 701, 1030], heads=2, groups=1, width=64)


def test_strided_inputs_as_the_joint_projection_gives_them():
    qkv = torch.randn(T, 8, 16)
    q, k, v = qkv.split((4, 2, 2), dim=1)
    documents = Documents(torch.tensor([0, 40, T], dtype=torch.int32), T)
    assert torch.equal(attention(q, k, v, documents), attention(*map(torch.clone, (q, k, v)), documents))


def test_the_cpu_takes_sdpa_and_says_why():
    name, reason = choose_attention("auto", torch.device("cpu"), torch.bfloat16, 64)
    assert name == "sdpa"
    assert "CUDA" in reason


@pytest.mark.parametrize(
    ("requested", "message"),
    [("fa3", "needs a CUDA device"), ("fa2", "needs a CUDA device"), ("flash", "known: auto, fa3")],
)
def test_a_choice_that_cannot_work_is_refused(requested, message):
    with pytest.raises(InputError, match=message):
        choose_attention(requested, torch.device("cpu"), torch.bfloat16, 64)


@pytest.fixture
def hopper(monkeypatch):
    """A GPU as far as the choice can see."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test Hopper")
    return torch.device("cuda", 0)


def test_without_flash_attention_3_hopper_takes_2(hopper, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)  # cannot be imported, wherever this runs
    name, reason = choose_attention("auto", hopper, torch.bfloat16, 64)
    assert name == "fa2"
    assert "flash_attn_interface" in reason
    with pytest.raises(InputError, match="flash_attn_interface"):
        choose_attention("fa3", hopper, torch.bfloat16, 64)


def test_with_flash_attention_3_hopper_takes_it(hopper, monkeypatch):
    activated = []
    monkeypatch.setattr(attention_module, "activate_flash_attention_impl", activated.append)
    assert choose_attention("auto", hopper, torch.bfloat16, 64)[0] == "fa3"
    assert activated == ["FA3"]


def test_older_gpus_are_told_what_they_lack(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    chosen = choose_attention("auto", hopper, torch.bfloat16, 64)
    assert chosen == ("fa2", "no fa3: FlashAttention-3 needs a Hopper GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    with pytest.raises(InputError, match="Ampere"):
        choose_attention("fa2", hopper, torch.float16, 64)


def test_heads_that_flash_attention_does_not_take(hopper, monkeypatch):
    monkeypatch.setattr(attention_module, "activate_flash_attention_impl", lambda name: None)
    assert choose_attention("auto", hopper, torch.bfloat16, 128)[0] == "fa3"
    name, reason = choose_attention("auto", hopper, torch.bfloat16, 192)
    assert name == "fa2"
    assert "no fa3: its heads are a multiple of 8 and at most 128 wide, this model's 192" in reason
    with pytest.raises(InputError, match="--attention fa3 cannot work: its heads are"):
        choose_attention("fa3", hopper, torch.bfloat16, 192)
    for width in (264, 20):
        assert choose_attention("auto", hopper, torch.bfloat16, width)[0] == "sdpa"


def test_fp32_is_refused_by_flash_and_falls_back_by_itself(hopper):
    name, reason = choose_attention("auto", hopper, torch.float32, 64)
    assert name == "sdpa"
    assert "float32" in reason
    with pytest.raises(InputError, match="bf16 or fp16, not float32"):
        choose_attention("fa2", hopper, torch.float32, 64)


class NoKernels:
    """`torch.ops` of a process that has loaded no FlashAttention-3."""

    def __getattr__(self, name):
        if name == "flash_attn_3":
            raise AttributeError(name)
        return getattr(OPS, name)


def test_a_broken_flash_attention_3_is_named_not_loaded(hopper, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn_interface", ModuleType("flash_attn_interface"))
    monkeypatch.setattr(torch, "ops", NoKernels())
    with pytest.raises(InputError, match="does not expose FA3"):
        choose_attention("fa3", hopper, torch.bfloat16, 64)


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: FlashAttention has no other"
)


@needs_gpu
@pytest.mark.parametrize("kernel", ["fa3", "fa2", "sdpa"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("bounds", AWKWARD_BOUNDS.values(), ids=AWKWARD_BOUNDS.keys())
def test_gpu_kernels_equal_the_naive_loop(kernel, bounds, groups, width):
    device = torch.device("cuda", 0)
    try:
        choose_attention(kernel, device, torch.bfloat16, width)
    except InputError as error:
        pytest.skip(str(error))
    check_against_naive(bounds, 8, groups, width, device, torch.bfloat16, tolerance=2e-2)


@needs_gpu
def test_fp32_on_a_gpu_goes_per_document():
    for bounds in AWKWARD_BOUNDS.values():
        check_against_naive(bounds, 4, 2, 64, torch.device("cuda", 0), torch.float32, tolerance=1e-4)


def test_on_a_gpu_torchs_variable_length_attention_is_called_causally(hopper):
    """Shapes and signature only: fake tensors need neither a GPU nor its kernels."""
    choose_attention("fa2", hopper, torch.bfloat16, 64)
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append((function, args))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.device("cuda"), Record():
        q, k, v = (torch.empty(T, heads, 64, dtype=torch.bfloat16) for heads in (8, 2, 2))
        out = attention(q, k, v, Documents(torch.empty(4, dtype=torch.int32), T))
    assert out.shape == q.shape
    (arguments,) = [args for function, args in called if function.name() == "torch_attn::_varlen_attn"]
    assert arguments[5:8] == (T, T, True)
