"""TRL reads conversations and trains on them as we do, and its DPO gives a folder that comes back.

Its environment is made by scripts/client_environments.py.
"""

import itertools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep import sample_conversations
from data_prep.tokenizing.chat import ChatOptions, tokenize_chat
from data_prep.tokenizing.train import train_byte_level
from lit_gpt.hf.mapping import hf_parts
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import parameter_shapes
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.store import masking
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.monitor.metrics import read_metrics
from scripts.client_environments import TRL, find_python
from scripts.convert_hf_checkpoint import ConvertHFOptions
from scripts.convert_hf_checkpoint import main as convert_hf
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from tests.german import german_texts
from tests.pretrain.running import ROOT, open_run, train
from tests.scripts.our_model import reader_of

BLOCK, STEPS = 512, 3
UNTIDY = [
    {"role": "system", "content": "  Antworte\n\nknapp.\t"},
    {"role": "user", "content": "🦊 Füchse — „wo“?\r\n"},
    {"role": "assistant", "content": " Im  Wald:\n- Höhlen\n- 3,14 €  \n\n"},
    {"role": "user", "content": "user\nassistant\n"},
    {"role": "assistant", "content": "日本語 </s"},
]
TEMPLATE = ROOT / "data_prep/templates/chatml.jinja"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trl_python():
    """A Python that has TRL."""
    python = find_python(TRL)
    if python is None:
        pytest.skip(f"no {TRL}: run python scripts/client_environments.py")
    return python


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trl_python):
    """base, a Hugging Face folder; chat.jsonl; store and run, of training from the one on the other."""
    folder = tmp_path_factory.mktemp("chat")
    messages = folder / "chat.jsonl"
    sample_conversations.main(sample_conversations.Options(messages, documents=25, seed=3))
    with messages.open("a") as file:
        file.write(json.dumps({"id": "untidy", "messages": UNTIDY}) + "\n")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=BLOCK,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    train_byte_level(german_texts(100, seed=8), 512, folder / "base", ["<|im_start|>", "<|im_end|>"])
    convert_hf(ConvertHFOptions(folder / "base", folder / "start"))
    tokenize_chat(
        ChatOptions([str(messages)], folder / "base", folder / "store", max_tokens=BLOCK, workers=1)
    )
    packed = PackedStore.open(TokenStore.open(folder / "store"), BLOCK)
    done = train(
        folder / "run",
        folder / "store",
        model_name=folder / "start",
        initial_checkpoint_dir=folder / "start",
        global_batch_size=int(packed.rows_per_shard.sum()),  # an epoch
        max_steps=STEPS,
        warmup_steps=0,
        learning_rate=1e-3,
        min_lr=1e-3,
        eval_step_interval=None,
        save_step_interval=STEPS,
        precision="32-true",
    )
    assert done.returncode == 0, done.stderr
    return folder


def run(*command: object, **environment: str) -> str:
    """Its standard output."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | offline | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_data_loss_and_gradient_are_trls(tmp_path, trl_python, folder):
    """Ids and targets; of each step, loss and norm of the gradient. We pack conversations, TRL pads them."""
    hf = shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copyfile(TEMPLATE, hf / "chat_template.jinja")
    program = Path(__file__).with_name("trl_sft.py")
    output = run(trl_python, program, hf, folder / "chat.jsonl", tmp_path / "scratch", STEPS)
    theirs = json.loads(output.splitlines()[-1])

    store = TokenStore.open(folder / "store")
    raw = [store.document_tokens(0, number) for number in range(len(theirs["input_ids"]))]
    assert [masking.ids_of(tokens).tolist() for tokens in raw] == theirs["input_ids"]
    targets = [[label != -100 for label in labels] for labels in theirs["labels"]]
    assert [masking.is_target(tokens).tolist() for tokens in raw] == targets

    ours = read_metrics(folder / "run/metrics.csv")
    assert [row["tokens"] for row in ours] == [sum(map(sum, targets)) * step for step in range(1, STEPS + 1)]
    for row, entry in zip(ours, theirs["log"], strict=True):
        print({name: row[name] / entry[name] - 1 for name in ("loss", "grad_norm")})
        assert row["loss"] == pytest.approx(entry["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-5)


def preferences(messages: Path, folder: Path) -> Path:
    """A data set for DPO: the last answer of each conversation is preferred to that of the next one."""
    conversations = [json.loads(line)["messages"] for line in messages.read_text().splitlines()]
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as file:
        for one, other in itertools.pairwise(conversations):
            record = {"prompt": one[:-1], "chosen": one[-1:], "rejected": other[-1:]}
            file.write(json.dumps(record) + "\n")
    return folder


def test_dpo_by_the_recipe_there_and_back(tmp_path, trl_python, folder):
    """Three steps. Every tensor comes back bit for bit, every other file as it was, and training goes on."""
    chat, tuned, back = (tmp_path / name for name in ("chat", "tuned", "back"))
    convert(ConvertOptions(folder / f"run/iter-{STEPS:08d}-ckpt.pth", chat))
    data = preferences(folder / "chat.jsonl", tmp_path / "preferences")
    options = ["--model_name_or_path", chat, "--dataset_name", data, "--output_dir", tuned, "--max_steps", 3]
    options += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--logging_steps", 1]
    recipe = ["--config", ROOT / "scripts/recipes/dpo.yaml", "--use_cpu", "--bf16", "False"]
    run(trl_python.with_name("trl"), "dpo", *recipe, *options, HF_HOME=str(tmp_path / "cache"))
    log = json.loads((tuned / "checkpoint-3/trainer_state.json").read_text())["log_history"]
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "at first the model is its reference"

    convert_hf(ConvertHFOptions(tuned, back))
    convert(ConvertOptions(back, tmp_path / "again", tokenizer_path=chat))
    config, reader = ModelConfig.load(back), reader_of(back)
    theirs, again = load_file(tuned / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    ours = {
        part.hf_name: reader.read(name)[part.rows]
        for name in parameter_shapes(config)
        for part in hf_parts(name, config)
    }
    assert theirs.keys() == ours.keys() == again.keys()
    assert all(tensor.equal(ours[name]) and tensor.equal(again[name]) for name, tensor in theirs.items())
    before = load_file(chat / "model.safetensors")
    assert not any(tensor.equal(before[name]) for name, tensor in theirs.items())

    others = {path.name for path in chat.iterdir()} - {"model.safetensors", "README.md"}
    assert {"config.json", "chat_template.jinja", "generation_config.json"} < others
    assert all((chat / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in others)
    assert Tokenizer.load(tuned).fingerprint == Tokenizer.load(chat).fingerprint
    start = {"model_name": str(back), "initial_checkpoint_dir": str(back)}
    open_run(tmp_path / "on", folder / "store", **start, max_steps=1, warmup_steps=0, eval_iters=0).fit()
