"""Checkpoints to Hugging Face folders: what is in them, that clients load them, and every fault one line."""

import csv
import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from lit_gpt.checkpoint.folder import DamagedCheckpoint
from lit_gpt.cli import InputError
from lit_gpt.hf import exporter as hf_folder_module
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.monitor.metrics import COLUMNS
from scripts.convert_lit_checkpoint import ConvertOptions, convert, main
from tests.pretrain.running import ROOT, environment
from tests.pretrain.saving import mounted
from tests.scripts.checkpoints import CONFIG, STATE, parameter, write_checkpoint


@pytest.fixture
def source(tmp_path):
    return write_checkpoint(tmp_path / "iter-00000100-ckpt.pth", ranks=3)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize("ranks", [1, 4, 7])
def test_every_tensor_whoever_wrote_it(ranks, tmp_path, tokenizer_dir):
    folder = write_checkpoint(tmp_path / "iter-00000100-ckpt.pth", ranks)
    convert(ConvertOptions(folder, tmp_path / "hf", tokenizer_dir))
    found = weights_of(tmp_path / "hf")
    for name in parameter_shapes(CONFIG):
        for part in hf_parts(name, CONFIG):
            assert torch.equal(found.pop(part.hf_name), parameter(name)[part.rows])
    assert not found


def test_what_lies_in_the_folder(source, tmp_path, tokenizer_dir):
    main(ConvertOptions(source, tmp_path / "hf", tokenizer_dir, check=True))
    config = json.loads((tmp_path / "hf/config.json").read_text())
    tokenizer = Tokenizer.load(tokenizer_dir)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["vocab_size"], config["max_position_embeddings"]) == (576, CONFIG.block_size)
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text())
    for content in (config, generation):
        assert (content["bos_token_id"], content["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert Tokenizer.load(tmp_path / "hf").fingerprint == tokenizer.fingerprint
    assert not list(tmp_path.glob("*.tmp"))


def test_a_model_of_conversations_brings_their_template_and_ends_its_turns(tmp_path, tokenizer_dir):
    """Over what the tokenizer's files had; generation stops at their end tokens too."""
    folder = shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ old }}"}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    chat = {
        "template": "{{ bos_token }}{% for m in messages %}{{ m.content }}ß{% endfor %}",
        "end_of_turn": 7,
    }
    source = write_checkpoint(tmp_path / "iter-00000100-ckpt.pth", state=STATE | {"chat": chat})
    convert(ConvertOptions(source, tmp_path / "hf", folder, check=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.chat_template == chat["template"]
    assert tokenizer.apply_chat_template([{"content": "ein"}], tokenize=False) == "<s>einß"
    assert "chat_template" not in json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == [tokenizer.eos_token_id, 5, 7]
    assert "## Conversations" in (tmp_path / "hf/README.md").read_text()


@pytest.mark.parametrize("ends", ["[1, 576]", "-1", '"</s>"'])
def test_end_tokens_that_the_model_does_not_have_are_refused(ends, source, tmp_path, tokenizer_dir):
    folder = shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    with pytest.raises(InputError, match=r"generation_config\.json: eos_token_id .* is no id"):
        convert(ConvertOptions(source, tmp_path / "hf", folder))
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("names", "pad"),
    [
        ({}, "</s>"),
        ({"pad_token": None}, "</s>"),
        ({"pad_token": "<s>"}, "<s>"),
        ({"pad_token": {"content": "<s>", "__type": "AddedToken"}}, "<s>"),
        ({"pad_token": "[PAD]"}, "</s>"),  # transformers would give it an id that the model has no row for
    ],
)
def test_any_tokenizer_folder_gets_what_clients_need(names, pad, source, tmp_path, tokenizer_dir):
    folder = shutil.copytree(tokenizer_dir, tmp_path / "tokenizer")
    old = {"tokenizer_class": "LlamaTokenizer", "model_max_length": 10**30, "bos_token": "<s>"}
    config = {**old, "eos_token": {"content": "</s>", "__type": "AddedToken"}, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    convert(ConvertOptions(source, tmp_path / "hf", folder, check=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    pad_id = {"<s>": 0, "</s>": 1}[pad]
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == (pad, pad_id, 512)
    assert (tokenizer.model_max_length, tokenizer.padding_side) == (CONFIG.block_size, "left")
    written = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
    assert written["model_input_names"] == ["input_ids", "attention_mask"]
    assert json.loads((tmp_path / "hf/generation_config.json").read_text())["pad_token_id"] == pad_id
    assert "pad_token_id" not in json.loads((tmp_path / "hf/config.json").read_text())


def test_the_card_says_what_is_known_and_no_place(source, tmp_path, tokenizer_dir):
    convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir))
    card = (tmp_path / "hf/README.md").read_text()
    for fact in (
        "100 optimizer steps",
        "51,200 predicted tokens",
        "| learning_rate | 0.001 |",
        "| german | 1,234 |",
    ):
        assert fact in card
    assert "secret" not in card
    assert "license:" not in card
    assert "training loss" not in card  # there is no metrics.csv


def test_the_card_says_over_how_many_steps_the_loss_is_a_mean(source, tmp_path, tokenizer_dir):
    with (source.parent / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows({"step": step, "loss": step / 10, "skipped": 0} for step in range(1, 121))
    convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir))
    card = (tmp_path / "hf/README.md").read_text()
    assert "| training loss (mean of the last 100 steps) | 5.0500 |" in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(dtype, source, tmp_path, tokenizer_dir):
    convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir, dtype=dtype, check=True))
    found = weights_of(tmp_path / "hf")
    assert torch.equal(found["lm_head.weight"], parameter("lm_head.weight").to(getattr(torch, dtype)))
    assert {value.dtype for value in found.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "hf/config.json").read_text())["torch_dtype"] == dtype


def test_shards_and_their_index(source, tmp_path, tokenizer_dir):
    limit = 150_000
    convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir, max_shard_gb=limit / 1e9, check=True))
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "hf").glob("model-*.safetensors"))
    assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert len(shards) > 3
    where = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            where |= dict.fromkeys(file.keys(), shard.name)
            assert sum(file.get_tensor(key).nbytes for key in file.keys()) <= limit  # noqa: SIM118
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == 4 * CONFIG.n_parameters


def test_transformers_generates_from_it(source, tmp_path, tokenizer_dir):
    convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = tokenizer("Der Wald", return_tensors="pt").input_ids
    generated = model.generate(ids, max_new_tokens=8, do_sample=False)[0]
    pipe = pipeline("text-generation", model=str(tmp_path / "hf"), device="cpu")
    text = pipe("Der Wald", max_new_tokens=8, do_sample=False)[0]["generated_text"]
    assert text == tokenizer.decode(generated, skip_special_tokens=True)


FAULTS = {
    "another tokenizer": "has 512 tokens, the model's vocabulary only 256: give --tokenizer_path",
    "no tokenizer": "tokenizer.json is missing",
    "a tokenizer that moved": "the token store is not where it was: give --tokenizer_path",
    "a flipped bit": "content does not match its hash",
    "a missing shard": "rank-00001-000.safetensors: missing",
    "a missing tensor": "norm_1.weight is missing",
    "no checkpoint": "no such folder",
    "an existing output": "already exists",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_nothing(fault, tmp_path, tokenizer_dir):
    source, output, tokenizer = tmp_path / "iter-00000100-ckpt.pth", tmp_path / "hf", tokenizer_dir
    if fault == "another tokenizer":
        write_checkpoint(source, config=dataclasses.replace(CONFIG, vocab_size=256))
    elif fault == "a missing tensor":
        write_checkpoint(source, skip="transformer.h.1.norm_1.weight")
    elif fault != "no checkpoint":
        write_checkpoint(source, ranks=2)
    shard = source / "model/rank-00001-000.safetensors"
    if fault == "a flipped bit":
        content = bytearray(shard.read_bytes())
        content[-5] ^= 4
        shard.write_bytes(content)
    elif fault == "a missing shard":
        shard.unlink()
    elif fault == "an existing output":
        output.mkdir()
    tokenizer = {"no tokenizer": tmp_path, "a tokenizer that moved": None}.get(fault, tokenizer)
    with pytest.raises(InputError, match=FAULTS[fault]) as caught:
        convert(ConvertOptions(source, output, tokenizer))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir() if path != source] == (
        ["hf"] if fault == "an existing output" else []
    )
    assert isinstance(caught.value, DamagedCheckpoint) == (
        fault in ("a flipped bit", "a missing shard", "no checkpoint")
    )


def test_a_full_disk_leaves_nothing(source, tmp_path, tokenizer_dir):
    with mounted(tmp_path / "small", "size=600k") as disk:
        with pytest.raises(InputError, match="No space left on device"):
            convert(ConvertOptions(source, disk / "hf", tokenizer_dir))
        assert not list(disk.iterdir())


def test_the_check_finds_a_folder_that_computes_something_else(source, tmp_path, tokenizer_dir, monkeypatch):
    original = hf_folder_module.to_hf_config
    monkeypatch.setattr(
        hf_folder_module, "to_hf_config", lambda config: original(config) | {"rope_theta": 500.0}
    )
    with pytest.raises(InputError, match="--check: logits differ by"):
        convert(ConvertOptions(source, tmp_path / "hf", tokenizer_dir, check=True))
    assert not (tmp_path / "hf").exists()


def run(**flags) -> subprocess.CompletedProcess[str]:
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "scripts/convert_lit_checkpoint.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120)


@pytest.mark.slow
def test_the_command_fails_with_one_line(source, tmp_path, tokenizer_dir):
    (source / "model/rank-00000-000.safetensors").write_bytes(b"")
    done = run(checkpoint=source, output=tmp_path / "hf", tokenizer_path=tokenizer_dir)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "rank-00000-000.safetensors: 0 bytes, should be" in line


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path, tokenizer_dir):
    """400 MB of weights through a process that needs less than 100 MB more than for a sixth of them."""

    def peak(n_layer: int) -> int:
        shape = {"n_layer": n_layer, "n_embd": 1024, "intermediate_size": 4096, "vocab_size": 512}
        config = ModelConfig.load("tiny_100K", **shape)
        folder = write_checkpoint(tmp_path / str(n_layer), ranks=2, config=config)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        done = run(checkpoint=folder, output=tmp_path / f"hf{n_layer}", tokenizer_path=tokenizer_dir)
        assert done.returncode == 0, done.stderr
        return max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

    small = peak(1)
    assert peak(6) - small < 100 * 1024  # in KiB
