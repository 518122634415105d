"""The model against transformers' Llama, document isolation, and initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gpt.config import ModelConfig
from lit_gpt.documents import Documents
from lit_gpt.hf_mapping import hf_parts, to_hf_config
from lit_gpt.model import GPT, clean_name

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
    ids, labels, _, _ = random_batch(rows=1, length=40)
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


def test_construction_on_meta_gives_the_same_model():
    config = ModelConfig.load("tiny_100K", vocab_size=VOCAB)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights(0)
    ids, labels, positions, documents = random_batch()
    assert torch.equal(
        model(ids, positions, documents, labels), make_model()(ids, positions, documents, labels)
    )


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
