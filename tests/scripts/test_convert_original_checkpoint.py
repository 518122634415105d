"""Checkpoints of TinyLlama, lit-gpt and the first LLäMmlein: every spelling, and nothing unpickled."""

import os
import pickle
import zipfile

import pytest
import torch

from lit_gpt.checkpoint.folder import verify
from lit_gpt.cli import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from scripts.convert_original_checkpoint import ConvertOriginalOptions, main
from tests.scripts.our_model import reader_of

CONFIG = ModelConfig.load("tiny_100K", vocab_size=96)
SPELLINGS = {
    "fc": {},
    "swiglu": {"mlp.fc_1": "mlp.swiglu.w1", "mlp.fc_2": "mlp.swiglu.w2", "mlp.proj": "mlp.swiglu.w3"},
    "w": {"mlp.fc_1": "mlp.w1", "mlp.fc_2": "mlp.w2", "mlp.proj": "mlp.w3"},
}


def original_weights(spelling=None, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in parameter_shapes(CONFIG).items():
        for ours, theirs in {"attn.qkv": "attn.attn", **(spelling or {})}.items():
            name = name.replace(ours, theirs)
        weights[name] = torch.randn(shape, generator=generator).to(dtype)
    return weights


def convert(tmp_path, content, model_name="tiny_100K"):
    torch.save(content, tmp_path / "iter-00000100-ckpt.pth")
    main(ConvertOriginalOptions(tmp_path / "iter-00000100-ckpt.pth", model_name, tmp_path / "lit"))
    verify(tmp_path / "lit")
    return reader_of(tmp_path / "lit")


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_arrives(spelling, dtype, tmp_path):
    weights = original_weights(spelling, dtype)
    reader = convert(tmp_path, weights)
    assert ModelConfig.load(tmp_path / "lit").vocab_size == CONFIG.vocab_size
    for name in parameter_shapes(CONFIG):
        if "qkv" not in name:
            theirs = name
            for ours, other in spelling.items():
                theirs = theirs.replace(ours, other)
            assert torch.equal(reader.read(name), weights[theirs])
            assert reader.dtype(name) == dtype


def test_queries_keys_and_values_are_taken_out_of_their_groups(tmp_path):
    """Projected as lit-gpt does it, group by group, every head gives the same numbers."""
    weights = original_weights()
    reader = convert(tmp_path, weights)
    x = torch.randn(5, CONFIG.n_embd)
    groups, per_group, width = CONFIG.n_query_groups, CONFIG.n_head // CONFIG.n_query_groups, CONFIG.head_dim
    for layer in range(CONFIG.n_layer):
        theirs = x @ weights[f"transformer.h.{layer}.attn.attn.weight"].T
        q, k, v = theirs.view(5, groups, per_group + 2, width).split((per_group, 1, 1), dim=2)
        ours = (x @ reader.read(f"transformer.h.{layer}.attn.qkv.weight").T).view(5, -1, width)
        expected = torch.cat([part.reshape(5, -1, width) for part in (q, k, v)], dim=1)
        torch.testing.assert_close(ours, expected)


def test_a_full_state_with_wrapped_names(tmp_path):
    weights = original_weights()
    state = {
        "model": {f"_forward_module.{name}": value for name, value in weights.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "hparams": {"learning_rate": 2.5e-4, "out_dir": "out"},
        "iter_num": 800,
        "step_count": 100,
    }
    reader = convert(tmp_path, state)
    assert torch.equal(reader.read("lm_head.weight"), weights["lm_head.weight"])
    assert (
        '"origin": "iter-00000100-ckpt.pth, iter_num 800, step_count 100"'
        in (tmp_path / "lit/state.json").read_text()
    )


class _Planted:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["hparams", "model"])
def test_a_planted_pickle_runs_nothing(where, tmp_path):
    message = (
        r"holds more than tensors and plain values \(posix\.mkdir\), and is not opened, since that may run"
    )
    with pytest.raises(InputError, match=message):
        convert(tmp_path, {"model": original_weights(), where: _Planted(tmp_path / "ran")})
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "lit").exists()


def test_a_refusal_does_not_say_how_to_run_the_code_all_the_same(tmp_path):
    with pytest.raises(InputError, match=r"\(torch\.nn\.modules\.linear\.Linear\)") as caught:
        convert(tmp_path, {"model": torch.nn.Linear(2, 2)})
    assert "weights_only" not in str(caught.value)
    assert str(caught.value).isprintable()  # neither lines nor colours of a terminal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path.write_bytes(pickle.dumps({"a": _Planted(path.with_name("ran"))})),
            "no zip file, as torch",
        ),
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
    ],
)
def test_other_kinds_of_files_are_refused_at_once(make, message, tmp_path):
    make(tmp_path / "a.pth")
    with pytest.raises(InputError, match=rf"a\.pth: .*{message}"):
        main(ConvertOriginalOptions(tmp_path / "a.pth", "tiny_100K", tmp_path / "lit"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("transformer.h.1.attn.attn.weight"),
            "attn.qkv.weight or .*attn.attn.weight is missing",
        ),
        (
            lambda w: w.pop("transformer.wte.weight"),
            "wte.weight is missing; the first tensor is transformer.h.0",
        ),
        (
            lambda w: w.update({"transformer.h.0.attn.attn.bias": torch.zeros(4)}),
            "attn.bias is a tensor that",
        ),
        (lambda w: w.update({"extra": 3}), "holds no state dict"),
    ],
)
def test_state_dicts_that_are_refused(change, message, tmp_path):
    weights = original_weights()
    change(weights)
    with pytest.raises(InputError, match=message):
        convert(tmp_path, weights)


def test_another_shape_is_named(tmp_path):
    with pytest.raises(InputError, match=r"wte.weight has shape \(96, 64\), tiny_3M wants \(96, 256\)"):
        convert(tmp_path, original_weights(), model_name="tiny_3M")


@pytest.mark.parametrize("content", [b"", b"no zip file", b"cos\nsystem\n(S'true'\ntR."])
def test_files_that_are_no_checkpoints(content, tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"other\.pth: no zip file, as torch.save has written"):
        main(ConvertOriginalOptions(path, "tiny_100K", tmp_path / "lit"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes", "no pickle")
    with pytest.raises(InputError, match=r"other\.pth: not readable by torch.load: ") as caught:
        main(ConvertOriginalOptions(path, "tiny_100K", tmp_path / "lit"))
    assert str(caught.value).isprintable()
    with pytest.raises(InputError, match="no such file"):
        main(ConvertOriginalOptions(tmp_path / "nowhere.pth", "tiny_100K", tmp_path / "lit"))
