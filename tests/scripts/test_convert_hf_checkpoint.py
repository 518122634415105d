"""Hugging Face folders to checkpoints and back: bitwise the same, the same logits, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from lit_gpt.checkpoint.folder import verify
from lit_gpt.cli import InputError
from lit_gpt.model.attention import Documents
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from scripts.convert_hf_checkpoint import ConvertHFOptions, main
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from tests.lit_gpt.model.rope_scalings import scalings
from tests.pretrain.running import train
from tests.pretrain.saving import mounted
from tests.scripts.our_model import reader_of

VOCAB = 520


def llama_config(**changes) -> LlamaConfig:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
    }
    return LlamaConfig(**fields | changes)


def save_llama(folder: Path, config: LlamaConfig, dtype=torch.float32, max_shard_size="1GB") -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def our_model(checkpoint: Path) -> GPT:
    model, reader = GPT(ModelConfig.load(checkpoint)), reader_of(checkpoint)
    for name, parameter in model.named_parameters():
        parameter.data = reader.read(name).float()
    return model


def logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    length = ids.shape[1]
    documents = Documents(torch.tensor([0, length], dtype=torch.int32), length)
    with torch.no_grad():
        return model(ids, torch.arange(length)[None], documents)


def assert_bitwise_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype
        assert torch.equal(value.view(torch.uint8), other[key].view(torch.uint8)), key


@pytest.mark.slow
@settings(max_examples=30)
@given(
    groups=st.integers(1, 4),
    queries_per_group=st.integers(1, 3),
    half_width=st.integers(1, 12),
    extra_width=st.sampled_from([0, 0, 2, 10]),
    layers=st.integers(1, 3),
    ffn=st.integers(1, 70),
    vocab=st.integers(512, 700),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    shard=st.sampled_from(["1GB", "40KB"]),
)
def test_there_and_back_is_the_identity(
    tmp_path_factory, tokenizer_dir, groups, queries_per_group, half_width, extra_width, layers, ffn, vocab,
    tied, dtype, shard,
):  # fmt: skip
    """HF -> ours -> HF -> ours, every tensor bit for bit, and every field of the shape."""
    tmp_path = tmp_path_factory.mktemp("round_trip")
    heads = groups * queries_per_group
    config = llama_config(
        hidden_size=heads * 2 * half_width,
        head_dim=2 * half_width + extra_width,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        vocab_size=vocab,
        tie_word_embeddings=tied,
    )
    first = save_llama(tmp_path / "first", config, dtype, shard)
    main(ConvertHFOptions(first, tmp_path / "lit"))
    convert(ConvertOptions(tmp_path / "lit", tmp_path / "second", tokenizer_dir, max_shard_gb=4e-5))
    main(ConvertHFOptions(tmp_path / "second", tmp_path / "lit2"))
    assert_bitwise_equal(weights_of(first), weights_of(tmp_path / "second"))
    assert_bitwise_equal(weights_of(tmp_path / "lit/model"), weights_of(tmp_path / "lit2/model"))
    ours, again = ModelConfig.load(tmp_path / "lit").to_dict(), ModelConfig.load(tmp_path / "lit2").to_dict()
    assert ours | {"name": ""} == again | {"name": ""}
    shutil.rmtree(tmp_path)


def with_tokenizer(folder: Path, tokenizer_dir: Path) -> dict[str, bytes]:
    """A tokenizer's files as others write them: indented, in an order and with keys of their own."""
    definition = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    contents = {
        "tokenizer.json": json.dumps(definition, indent=4, ensure_ascii=True),
        "tokenizer_config.json": json.dumps({"legacy": True, "chat_template": "{{ x }}", **config}),
        "special_tokens_map.json": json.dumps({"unk_token": "<unk>"}),
        "chat_template.jinja": "{{ y }}",
        "generation_config.json": json.dumps({"temperature": 0.6, "eos_token_id": [3, 1, 7]}),
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {name: content.encode() for name, content in contents.items()}


def test_the_tokenizer_goes_along_there_and_back(tmp_path, tokenizer_dir):
    """Byte for byte and without a flag; a file that somebody put beside it does not."""
    hf, lit, out = (tmp_path / name for name in ("hf", "lit", "out"))
    contents = with_tokenizer(save_llama(hf, llama_config()), tokenizer_dir)
    main(ConvertHFOptions(hf, lit))
    assert {path.name: path.read_bytes() for path in (lit / "tokenizer").iterdir()} == contents
    (lit / "tokenizer/added_tokens.json").write_text('{"planted": 1}')
    convert(ConvertOptions(lit, out, check=True))
    ends = json.loads((out / "generation_config.json").read_text())
    assert ends == {"bos_token_id": 0, "eos_token_id": [1, 3, 7], "pad_token_id": 1}
    copied = contents.keys() - {"generation_config.json"}
    assert all((out / name).read_bytes() == contents[name] for name in copied)
    assert not (out / "added_tokens.json").exists()
    assert_bitwise_equal(weights_of(hf), weights_of(out))


def test_another_tokenizer_may_be_given_on_the_way_back(tmp_path, tokenizer_dir):
    with_tokenizer(save_llama(tmp_path / "hf", llama_config()), tokenizer_dir)
    main(ConvertHFOptions(tmp_path / "hf", tmp_path / "lit"))
    convert(ConvertOptions(tmp_path / "lit", tmp_path / "out", tokenizer_dir))
    assert "model_input_names" in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_a_tokenizer_that_was_damaged_on_the_way_is_found(tmp_path, tokenizer_dir):
    with_tokenizer(save_llama(tmp_path / "hf", llama_config()), tokenizer_dir)
    main(ConvertHFOptions(tmp_path / "hf", tmp_path / "lit"))
    path = tmp_path / "lit/tokenizer/tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"BPE"', b'"BPF"'))
    with pytest.raises(InputError, match=r"tokenizer/tokenizer\.json: content does not match its hash"):
        convert(ConvertOptions(tmp_path / "lit", tmp_path / "out"))


def test_without_a_tokenizer_the_way_back_asks_for_one(tmp_path, tokenizer_dir):
    hf = save_llama(tmp_path / "hf", llama_config())
    (hf / "tokenizer_config.json").write_text("{}")  # half of one is none
    main(ConvertHFOptions(hf, tmp_path / "lit"))
    shutil.copy(tokenizer_dir / "tokenizer.json", tmp_path / "lit/tokenizer")  # and is not completed
    message = (
        r"lit carries no tokenizer and was not trained on a token store: give --tokenizer_path the model's"
    )
    with pytest.raises(InputError, match=message):
        convert(ConvertOptions(tmp_path / "lit", tmp_path / "out"))


SCALINGS = scalings(32)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
@pytest.mark.parametrize("words", ["transformers 4", "transformers 5"])
def test_logits_equal_transformers_beyond_the_original_length(scaling, words, tmp_path, tokenizer_dir):
    """Into ours, and out again, with each rotary scaling in both spellings of config.json."""
    folder = save_llama(
        tmp_path / "hf", llama_config(rope_parameters=scaling and {**scaling, "rope_theta": 5e4})
    )
    if words == "transformers 4":
        config = json.loads((folder / "config.json").read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope} if scaling else None
        (folder / "config.json").write_text(json.dumps(config))
    main(ConvertHFOptions(folder, tmp_path / "lit"))
    convert(ConvertOptions(tmp_path / "lit", tmp_path / "out", tokenizer_dir))
    ids = torch.randint(VOCAB, (1, 100), generator=torch.Generator().manual_seed(1))
    ours = logits(our_model(tmp_path / "lit"), ids)
    for theirs in (folder, tmp_path / "out"):
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(theirs)(ids).logits
        assert (ours - expected).abs().max() < 1e-4


def save_mistral(folder: Path, **changes) -> MistralForCausalLM:
    fields = llama_config().to_dict()
    shared = {
        key: fields[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    }
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, **changes}
    model = MistralForCausalLM(MistralConfig(**shared, **shape))
    model.save_pretrained(folder)
    return model


def test_a_mistral_that_says_no_window_has_one(tmp_path):
    """transformers' default is 4096: where sequences can be longer, this is not the model that we compute."""
    for longest in (8192, 4096):
        folder = tmp_path / str(longest)
        save_mistral(folder, max_position_embeddings=longest)
        spoil_config(folder, sliding_window="absent")
        assert AutoModelForCausalLM.from_pretrained(folder).config.sliding_window == 4096
        if longest > 4096:
            message = r"sliding_window 4096, which transformers takes where config.json has none, is shorter"
            with pytest.raises(InputError, match=message):
                main(ConvertHFOptions(folder, tmp_path / "lit"))
        else:
            main(ConvertHFOptions(folder, tmp_path / "lit"))
            assert ModelConfig.load(tmp_path / "lit").block_size == 4096


def test_mistral(tmp_path):
    model = save_mistral(tmp_path / "hf", sliding_window=None)
    main(ConvertHFOptions(tmp_path / "hf", tmp_path / "lit"))
    ids = torch.randint(VOCAB, (1, 50))
    with torch.no_grad():
        assert (logits(our_model(tmp_path / "lit"), ids) - model(ids).logits).abs().max() < 1e-4


def test_the_checkpoint_says_where_it_is_from(tmp_path, capsys):
    folder = save_llama(tmp_path / "some-llama", llama_config())
    main(ConvertHFOptions(folder, tmp_path / "lit"))
    manifest = verify(tmp_path / "lit")
    state = json.loads((tmp_path / "lit/state.json").read_text())
    assert (manifest.step, state["step"], state["origin"]) == (0, 0, "Hugging Face folder some-llama")
    assert f"--initial_checkpoint_dir {tmp_path / 'lit'}" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    return save_llama(tmp_path / "hf", llama_config(), max_shard_size="100KB")


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))


def spoil_weights(folder, change):
    """Rewrite as one file after `change(weights)`."""
    weights = weights_of(folder)
    for path in folder.glob("model*"):
        path.unlink()
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; only 'llama' or 'mistral' is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"sliding_window": 64}, "sliding_window 64 is shorter than max_position_embeddings 128"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is unknown"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": None}}, "yarn cannot be computed"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
        ({"rms_norm_eps": None, "vocab_size": None}, "vocab_size, rms_norm_eps is null"),
        ({"vocab_size": "absent"}, r"embed_tokens.weight has shape .*, config.json wants \(32000, 64\)"),
        ({"rope_theta": 5e5}, "rope_theta is 500000.0 and, beside the scaling, 10000.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is unknown"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            r"architectures is \['LlamaForSequenceClassification'\]; only \['LlamaForCausalLM'\]",
        ),
        ({"hidden_size": "big"}, "n_embd: 'big' is not a whole number"),
        (
            {"hidden_size": 32, "head_dim": 16},
            r"embed_tokens.weight has shape \(520, 64\), config.json wants \(520, 32\)",
        ),
        ({"num_key_value_heads": 3}, "n_query_groups 3 does not divide n_head 4"),
    ],
)
def test_configurations_that_are_refused(folder, changes, message, tmp_path):
    spoil_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    assert not (tmp_path / "lit").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "lm_head.weight is missing"),
        (lambda w: w.update({"score.weight": torch.ones(2, 64)}), "score.weight is a tensor that"),
        (lambda w: w["model.norm.weight"].fill_(float("nan")), "model.norm.weight holds NaN or infinite"),
        (lambda w: w["lm_head.weight"][3].fill_(float("-inf")), "lm_head.weight holds NaN or infinite"),
        (
            lambda w: w.pop("model.layers.1.self_attn.k_proj.weight"),
            "layers.1.self_attn.k_proj.weight is missing",
        ),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
            "q_proj.bias is a tensor that",
        ),
        (lambda w: w.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}), "is I8; quantised"),
        (lambda w: w.update({"model.norm.weight": torch.ones(63)}), r"norm.weight has shape \(63,\)"),
        (
            lambda w: w.update({"model.layers.0.self_attn.v_proj.weight": torch.ones(32, 64).bfloat16()}),
            "v_proj.weight is torch.bfloat16, but what it is stacked with is torch.float32",
        ),
    ],
)
def test_weights_that_are_refused(folder, change, message, tmp_path):
    spoil_weights(folder, change)
    with pytest.raises(InputError, match=message):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    assert not list(tmp_path.glob("lit*"))


def test_tensors_that_only_old_folders_keep_are_left_out(folder, tmp_path):
    spoil_weights(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    main(ConvertHFOptions(folder, tmp_path / "lit"))
    assert not [key for key in reader_of(tmp_path / "lit").keys() if "rotary" in key]  # noqa: SIM118


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        main(ConvertHFOptions(tmp_path / "nowhere", tmp_path / "lit"))
    index = folder / "model.safetensors.index.json"
    outside = json.loads(index.read_text())
    outside["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors"
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "elsewhere.safetensors")
    index.write_text(json.dumps(outside))
    with pytest.raises(InputError, match=r"elsewhere.safetensors', which is not a file here"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    index.write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is not readable JSON"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json is missing"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({"secret": torch.ones(3)}), r"secret is a tensor that .* does not name for it"),
        (lambda w: w.pop("model.norm.weight"), r"model\.norm\.weight is not in it, though"),
    ],
)
def test_a_weight_file_has_the_tensors_that_the_index_names_for_it(folder, change, message, tmp_path):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"]["model.norm.weight"]
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(InputError, match=f"{file.name}: {message}"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))


def test_a_cut_file_is_named(folder, tmp_path):
    first = min(folder.glob("*.safetensors"))
    os.truncate(first, first.stat().st_size - 10)
    with pytest.raises(InputError, match=first.name):
        main(ConvertHFOptions(folder, tmp_path / "lit"))


def test_nothing_in_the_folder_is_run(folder, tmp_path):
    """A planted pickle, and code that config.json names."""
    planted = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "modeling_planted.py").write_text(planted + "class Planted: ...\n")
    (folder / "configuration_planted.py").write_text(planted + "class PlantedConfig: ...\n")
    spoil_config(
        folder,
        auto_map={
            "AutoConfig": "configuration_planted.PlantedConfig",
            "AutoModelForCausalLM": "modeling_planted.Planted",
        },
        trust_remote_code=True,
    )
    payload = f"cos\nsystem\n(S'touch {tmp_path / 'ran'}'\ntR.".encode()
    (folder / "pytorch_model.bin").write_bytes(payload)
    main(ConvertHFOptions(folder, tmp_path / "lit"))
    for path in folder.glob("model*safetensors*"):
        path.unlink()
    with pytest.raises(InputError, match=r"pytorch_model.bin is a pickle and is not opened"):
        main(ConvertHFOptions(folder, tmp_path / "lit2"))
    assert not (tmp_path / "ran").exists()


def test_an_existing_output_is_left_alone(folder, tmp_path):
    (tmp_path / "lit").mkdir()
    with pytest.raises(InputError, match="already exists"):
        main(ConvertHFOptions(folder, tmp_path / "lit"))
    assert not list((tmp_path / "lit").iterdir())


def test_a_full_disk_leaves_nothing(folder, tmp_path):
    with mounted(tmp_path / "small", "size=200k") as disk:
        with pytest.raises(InputError, match="No space left on device"):
            main(ConvertHFOptions(folder, disk / "lit"))
        assert not list(disk.iterdir())


@pytest.mark.slow
def test_continued_pretraining_begins_from_it(tmp_path, train_store_dir):
    """In, through the trainer with weights that must not move, and out again: nothing has changed."""
    folder = save_llama(tmp_path / "hf", llama_config(vocab_size=576))
    main(ConvertHFOptions(folder, tmp_path / "lit"))
    done = train(
        tmp_path / "run",
        train_store_dir,
        model_name=tmp_path / "lit",
        initial_checkpoint_dir=tmp_path / "lit",
        learning_rate=1e-30,  # added to any weight it rounds to nothing
        min_lr=0.0,
        max_steps=2,
        warmup_steps=1,
        save_step_interval=2,
        eval_step_interval=0,
    )
    assert done.returncode == 0, done.stderr
    convert(ConvertOptions(tmp_path / "run/iter-00000002-ckpt.pth", tmp_path / "out"))
    assert_bitwise_equal(weights_of(folder), weights_of(tmp_path / "out"))
