"""The model against transformers' Llama, document isolation, and initialisation."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gpt.hf.mapping import hf_parts, to_hf_config
from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT, clean_name
from scripts.faults.ports import free_ports
from tests.lit_gpt.model import init_rank
from tests.pretrain.ranks import run_ranks

VOCAB = 96


def make_model(seed=0, **overrides):
    model = GPT(ModelConfig.load("tiny_100K", **{"vocab_size": VOCAB, **overrides}))
    model.init_weights(seed)
    return model


def as_transformers(model):
    """The same weights in transformers' Llama, in fp32."""
    config = model.config
    llama = LlamaForCausalLM(LlamaConfig(**to_hf_config(config), attn_implementation="sdpa"))
    weights = {
        part.hf_name: value[part.rows]
        for name, value in model.state_dict().items()
        if not (config.tie_embeddings and name == "lm_head.weight")
        for part in hf_parts(name, config)
    }
    missing, unexpected = llama.load_state_dict(weights, strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_embeddings else [])
    return llama


def whole_rows(rows, length):
    bounds = torch.arange(0, rows * length + 1, length, dtype=torch.int32)
    positions = torch.arange(length).expand(rows, length)
    return positions, Documents(bounds, length)


def call(model, batch):
    """The summed loss of a `random_batch` or `packed_batch`."""
    ids, labels, positions, documents = batch
    return model(ids, positions, documents, labels)


def random_batch(rows=2, length=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCAB, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :3] = -100
    return ids[:, :-1], labels, *whole_rows(rows, length)


SHAPES = {
    "multi-head": {"n_query_groups": 4},
    "grouped": {"n_query_groups": 2},
    "multi-query": {"n_query_groups": 1},
    "tied": {"tie_embeddings": True},
    "heads wider than the stream": {"head_size": 32},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_and_gradients_equal_transformers(shape):
    model = make_model(**shape)
    llama = as_transformers(model)
    ids, labels, positions, documents = random_batch()

    logits, expected = model(ids, positions, documents), llama(ids).logits
    assert (logits - expected).abs().max() < 1e-4

    loss = model(ids, positions, documents, labels)
    wanted = F.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-4)
    loss.backward()
    wanted.backward()
    gradients = {name: parameter.grad for name, parameter in llama.named_parameters()}
    for name, parameter in model.named_parameters():
        for part in hf_parts(name, model.config):
            found, other = parameter.grad[part.rows], gradients[part.hf_name]
            assert (found - other).abs().max() <= 1e-4 * other.abs().max(), name


def test_packed_documents_are_as_if_alone():
    """Losses and gradients of a row of two documents (and a masked rest) equal the sum of the two alone."""
    model = make_model()
    lengths = [23, 14]
    ids, labels, _, _ = random_batch(rows=1, length=40, seed=3)
    labels[0, sum(lengths) :] = -100
    bounds = [0, 23, 37, 40]
    positions = torch.cat([torch.arange(n) for n in (23, 14, 3)])[None]
    packed = model(ids, positions, Documents(torch.tensor(bounds, dtype=torch.int32), 40), labels)
    packed.backward()
    packed_gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    alone = []
    for start, stop in ((0, 23), (23, 37)):
        loss = model(ids[:, start:stop], *whole_rows(1, stop - start), labels[:, start:stop])
        loss.backward()
        alone.append(loss)
    torch.testing.assert_close(packed, sum(alone), rtol=1e-6, atol=1e-5)
    for found, parameter in zip(packed_gradients, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-5)


def test_no_document_sees_another():
    model = make_model()
    ids, _labels, _, _ = random_batch(rows=1, length=40)
    documents = Documents(torch.tensor([0, 15, 40], dtype=torch.int32), 40)
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    logits = model(ids, positions, documents)
    changed = ids.clone()
    changed[0, :15] = (changed[0, :15] + 1) % VOCAB
    assert torch.equal(logits[0, 15:], model(changed, positions, documents)[0, 15:])


def test_number_of_parameters():
    for overrides in SHAPES.values():
        model = make_model(**overrides)
        assert sum(parameter.numel() for parameter in model.parameters()) == model.config.n_parameters


def test_initial_weights_have_tinyllamas_deviations():
    model = make_model(n_embd=256, intermediate_size=512, n_layer=3)
    usual, output = math.sqrt(2 / 5 / 256), 1 / math.sqrt(256) / 3
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_f" in name:
            assert (parameter == 1).all()
        else:
            wanted = output if "proj" in name else usual
            assert abs(parameter.std().item() / wanted - 1) < 0.03, name
            assert abs(parameter.mean().item()) < 4 * wanted / parameter.numel() ** 0.5


def test_a_parameter_depends_on_seed_and_name_only():
    small, deep = make_model(), make_model(n_layer=4)
    name = "transformer.h.1.attn.qkv.weight"
    assert torch.equal(small.get_parameter(name), deep.get_parameter(name))
    assert not torch.equal(small.get_parameter(name), make_model(seed=1).get_parameter(name))
    assert not torch.equal(small.get_parameter(name), small.get_parameter(name.replace("1", "0")))


@pytest.mark.parametrize("tied", [False, True])
def test_construction_on_meta_gives_the_same_model(tied):
    config = ModelConfig.load("tiny_100K", vocab_size=VOCAB, tie_embeddings=tied)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights(0)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.n_parameters
    batch = random_batch()
    assert torch.equal(call(model, batch), call(make_model(tie_embeddings=tied), batch))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_sharded_over_ranks_it_is_the_same_model(world_size):
    """Initial weights, loss and gradients; three ranks divide no parameter evenly."""
    run_ranks(init_rank.compare, world_size, world_size, *free_ports(1))


def test_clean_name_strips_every_wrapper():
    wrapped = "_forward_module.transformer.h.0._checkpoint_wrapped_module._orig_mod.attn.qkv.weight"
    assert clean_name(wrapped) == "transformer.h.0.attn.qkv.weight"


def test_bf16_autocast_keeps_the_loss_close_and_the_gradients_fp32():
    model = make_model()
    ids, labels, positions, documents = random_batch()
    exact = model(ids, positions, documents, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, positions, documents, labels)
    loss.backward()
    assert abs(loss.item() / exact.item() - 1) < 0.01
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}


def packed_batch(n_documents, rows=2, length=32):
    """Rows of random documents whose number is given (at least one a row)."""
    generator = torch.Generator().manual_seed(n_documents)
    ids, labels, _, _ = random_batch(rows, length, seed=n_documents)
    edges = set(range(0, rows * length + 1, length))
    inside = [cut for cut in torch.randperm(rows * length, generator=generator).tolist() if cut not in edges]
    bounds = torch.tensor(sorted(edges | set(inside[: n_documents - rows])), dtype=torch.int32)
    positions = torch.cat([torch.arange(n) for n in bounds.diff().tolist()]).view(rows, length)
    return ids, labels, positions, Documents(bounds, length)


def test_a_varying_number_of_documents_compiles_once():
    """Four graphs for blocks, which break at SDPA, one for the last norm; a smaller batch adds as many."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model, eager = make_model(), make_model()
    model.transformer.compile_blocks(backend=counter)
    for n_documents in (4, 4, 4, 7, 2, 2, 31, 5, 3, 9, 12, 6, 8, 2, 10, 11, 64, 13, 4):
        batch = packed_batch(n_documents)
        torch.testing.assert_close(call(model, batch), call(eager, batch))
        assert counter.frame_count == 5
    call(model, packed_batch(1, rows=1))
    assert counter.frame_count == 10
    call(model, packed_batch(17))
    assert counter.frame_count == 10


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++: torch compiles for the CPU with it")
def test_compiled_blocks_compute_the_same():
    torch.compiler.reset()
    model, eager = make_model(), make_model()
    model.transformer.compile_blocks()
    for n_documents in (3, 5):
        loss, expected = (call(each, packed_batch(n_documents)) for each in (model, eager))
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        for found, wanted in zip(model.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4)
