"""Rows for the tokens of an extended vocabulary: against numpy and transformers, and trained in stages."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_prep.tokenizing import job
from lit_gpt.checkpoint.folder import folder_name, read_state
from lit_gpt.cli import InputError, parse_options
from lit_gpt.hf import extended_vocabulary
from lit_gpt.hf.extended_vocabulary import EmbeddingInit
from lit_gpt.model.config import ModelConfig
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer
from scripts.convert_hf_checkpoint import ConvertHFOptions, main
from scripts.convert_lit_checkpoint import ConvertOptions, convert
from tests.german import german_texts
from tests.lit_gpt.hf.extension_by_hand import extend
from tests.pretrain.running import checkpoint_tensors, open_run
from tests.scripts.our_model import load, logits, reader_of
from tests.scripts.test_convert_hf_checkpoint import llama_config, save_llama

EMBEDDINGS = ("transformer.wte.weight", "lm_head.weight")
SPECIAL = ["<|im_start|>", "<|im_end|>"]


class Extended(NamedTuple):
    """A trained model as a Hugging Face folder, and an extension of its tokenizer."""

    base: Path
    tokenizer: Path
    extension: Extension


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_store_dir, tokenizer_dir) -> Extended:
    """New tokens are the most frequent words that the base cuts."""
    folder = tmp_path_factory.mktemp("extended")
    open_run(folder / "run", train_store_dir, eval_step_interval=0, max_steps=60).fit()
    convert(ConvertOptions(folder / "run" / folder_name(60), folder / "base"))
    words = Counter(word for text in german_texts(100, seed=3) for word in text.split() if word.isalpha())
    frequent = [f" {word}" for word, _ in words.most_common(120)]
    return Extended(
        folder / "base",
        folder / "tokenizer",
        extend(folder / "base", folder / "tokenizer", frequent, SPECIAL),
    )


def new_rows_by_loop(extended: Extended, weights: np.ndarray, first_only: bool) -> dict[int, np.ndarray]:
    """By id."""
    base, rows = Tokenizer.load(extended.base), {}
    for token, old in extended.extension.new_tokens.items():
        rows[token] = weights[old[0]] if first_only else sum(weights[i] for i in old) / np.float32(len(old))
    for string, token in extended.extension.special_tokens.items():
        old = base.encode([string])[0][1:-1]
        rows[token] = weights[old[0]] if first_only else sum(weights[i] for i in old) / np.float32(len(old))
    return rows


@pytest.mark.parametrize(
    ("init", "dtype", "tied", "base_rows"),
    [
        ("eeve", torch.float32, False, 512),
        ("eeve", torch.bfloat16, False, 576),
        ("eeve", torch.bfloat16, True, 704),
        ("mean", torch.bfloat16, False, 704),
        ("mean", torch.float32, True, 512),
    ],
)
def test_new_rows_are_those_of_a_loop_and_all_else_stays(tmp_path, trained, init, dtype, tied, base_rows):
    """Of a base without rows to spare, with a few, and with more than there are new tokens."""
    config = llama_config(vocab_size=base_rows, tie_word_embeddings=tied)
    hf = save_llama(tmp_path / "hf", config, dtype)
    shutil.copytree(
        trained.base, hf, ignore=lambda _, n: [x for x in n if "token" not in x], dirs_exist_ok=True
    )
    main(ConvertHFOptions(hf, tmp_path / "old"))
    main(ConvertHFOptions(hf, tmp_path / "new", trained.tokenizer, init))
    old, new = reader_of(tmp_path / "old"), reader_of(tmp_path / "new")
    assert old.keys() == new.keys()
    first, n_ids = trained.extension.first_new_id, trained.extension.vocab_size
    n_rows = {512: 640, 576: 640, 704: 704}[base_rows]
    assert ModelConfig.load(tmp_path / "new").vocab_rows == n_rows >= n_ids > 576
    for name in old.keys():  # noqa: SIM118
        before, after = old.read(name), new.read(name)
        assert before.dtype == after.dtype == dtype
        if name not in EMBEDDINGS:
            assert torch.equal(before, after)
            continue
        assert torch.equal(before[:first], after[:first])
        assert torch.equal(before[n_ids:], after[n_ids:base_rows])
        values = before.float().numpy()
        loop = new_rows_by_loop(trained, values, first_only=init == "eeve" and name == "lm_head.weight")
        assert list(loop) == list(range(first, n_ids))
        rows = torch.from_numpy(np.stack(list(loop.values()))).to(dtype)
        assert torch.equal(after[first:n_ids], rows)
        padding = after[max(n_ids, base_rows) :].float().numpy()
        assert np.allclose(padding, values[:first].mean(0)[None], rtol=1e-2, atol=1e-6)


def test_the_mean_of_all_rows_takes_no_copy_of_the_matrix_in_fp32():
    rows = torch.randn(16384, 64, dtype=torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        mean = extended_vocabulary._mean(rows)
    assert 0 < max(event.cpu_memory_usage for event in profiled.events()) <= rows.nbytes // 4
    assert torch.allclose(mean.double(), rows.double().mean(0), rtol=2**-8, atol=1e-6)


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    folder = trained.base.parent / "checkpoint"
    main(ConvertHFOptions(trained.base, folder, trained.tokenizer))
    return folder


def test_old_logits_stay_and_the_folder_loads_with_the_extended_tokenizer(tmp_path, trained, checkpoint):
    convert(ConvertOptions(checkpoint, tmp_path / "out", check=True))
    base, out = (AutoModelForCausalLM.from_pretrained(folder) for folder in (trained.base, tmp_path / "out"))
    ids = torch.randint(512, (1, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, theirs = base(ids).logits[0], out(ids).logits[0]
    assert (theirs[:, :512] - expected).abs().max() < 1e-6
    assert (logits(load(checkpoint), ids[0])[:, :512] - expected).abs().max() < 1e-5
    assert out.config.vocab_size == 640
    for path in Tokenizer.load(trained.tokenizer).files():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.load(trained.tokenizer)
    for text in german_texts(20, seed=9):
        ids = theirs.encode(text)
        assert ids == ours.encode([text])[0][:-1].tolist()
        assert 512 <= max(ids) < 640
    assert [theirs.convert_tokens_to_ids(token) for token in SPECIAL] == [
        *trained.extension.special_tokens.values()
    ]


def test_new_tokens_are_predicted_better_than_from_random_rows(trained, checkpoint):
    tokenizer, model = Tokenizer.load(trained.tokenizer), load(checkpoint)
    texts = [
        torch.from_numpy(ids[:129].astype(np.int64)) for ids in tokenizer.encode([*german_texts(30, seed=9)])
    ]

    def loss() -> float:
        """Of the targets that are new."""
        losses = [cross_entropy(logits(model, ids[:-1]), ids[1:], reduction="none") for ids in texts]
        return torch.cat(losses)[torch.cat([ids[1:] for ids in texts]) >= 512].mean().item()

    ours = loss()
    for name, parameter in model.named_parameters():
        if name in EMBEDDINGS:
            torch.manual_seed(0)
            new = parameter.data[512:]
            new.copy_(torch.randn_like(new) * parameter.data[:512].std())
    random = loss()
    assert ours < random - 1, (ours, random)


@pytest.fixture(scope="module")
def store(trained, corpus_files) -> Path:
    folder = trained.base.parent / "store"
    files = [str(file) for file in corpus_files]
    job.tokenize(job.Options(input=files, tokenizer=trained.tokenizer, output=folder, workers=1))
    return folder


NEW = ["transformer.wte[new]", "lm_head[new]"]
STAGES = [
    {"name": "new", "steps": 4, "trainable": NEW, "warmup_steps": 0},
    {"name": "all", "steps": 4, "warmup_steps": 0},
]


def test_new_rows_are_trained_first_and_a_resume_needs_no_initial_checkpoint(tmp_path, checkpoint, store):
    initial = tmp_path / "initial"
    shutil.copytree(checkpoint, initial)
    flags = {"model_name": str(initial), "initial_checkpoint_dir": str(initial), "max_steps": None}
    straight, run = tmp_path / "straight", tmp_path / "run"
    settings = flags | {"stages": STAGES, "save_step_interval": 2, "eval_step_interval": 0, "keep_last": 0}
    open_run(straight, store, **settings).fit()
    begin, between = load(initial).state_dict(), checkpoint_tensors(straight, 4)
    for name, before in begin.items():
        after = between[f"model/{name}"]
        assert torch.equal(before[:512], after[:512])
        assert torch.equal(before[512:], after[512:]) == (name not in EMBEDDINGS)
    state = read_state(straight / folder_name(2))
    assert state["extension"] == read_state(initial)["extension"]
    assert state["options"]["trainable"] == ["transformer.wte[512:]", "lm_head[512:]"]

    shutil.copytree(straight, run)
    for step in (4, 6, 8):
        shutil.rmtree(run / folder_name(step))
    shutil.copy(initial / "state.json", tmp_path / "shape.json")
    shutil.rmtree(initial)
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(json.loads(shape.read_text())["model"] | {"name": "shape"}))
    open_run(run, store, resume="auto", **settings | {"model_name": str(shape)}).fit()
    one, other = checkpoint_tensors(straight, 8), checkpoint_tensors(run, 8)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_new_rows_need_an_extension(tmp_path, trained, train_store_dir, checkpoint, store):
    for options in ({}, {"resume": "auto"}):
        with pytest.raises(
            InputError, match=r"--trainable lm_head\[new\]: the vocabulary .* was not extended"
        ):
            open_run(tmp_path / "run", train_store_dir, trainable=["lm_head[new]"], **options)
    with pytest.raises(InputError, match=r"missing: no such folder"):
        open_run(tmp_path / "run", store, trainable=NEW, initial_checkpoint_dir=str(tmp_path / "missing"))
    flags = {"model_name": str(checkpoint), "initial_checkpoint_dir": str(checkpoint)}
    with pytest.raises(InputError, match="were trained with another tokenizer"):
        open_run(tmp_path / "run", train_store_dir, **flags)


def test_what_does_not_fit_is_refused(tmp_path, trained, tokenizer_dir):
    def refused(message: str, base: Path, extension: Path, init: EmbeddingInit = "eeve") -> None:
        with pytest.raises(InputError, match=message):
            main(ConvertHFOptions(base, tmp_path / "out", extension, init))
        assert not (tmp_path / "out").exists()

    refused("extension.json", trained.base, tokenizer_dir)
    other = shutil.copytree(trained.base, tmp_path / "other")
    definition = json.loads((other / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(definition))
    refused("extends another tokenizer .* than .*other has .*; extend that one", other, trained.tokenizer)
    (other / "tokenizer.json").unlink()
    refused("tokenizer.json", other, trained.tokenizer)
    torn = shutil.copytree(trained.tokenizer, tmp_path / "torn")
    shutil.copy(trained.base / "tokenizer.json", torn)
    refused(r"torn: tokenizer and extension\.json differ", trained.base, torn)
    theirs = trained.extension
    rows, first = theirs.new_tokens, theirs.first_new_id
    for another in (
        replace(theirs, new_tokens=dict(zip(rows, reversed(rows.values()), strict=True))),
        replace(theirs, first_new_id=first - 1, new_tokens={first - 1: [1, 2], **rows}),
    ):
        shutil.copytree(trained.tokenizer, torn, dirs_exist_ok=True)
        another.write(torn)
        refused(r"torn: tokenizer and extension\.json differ", trained.base, torn)
    small = save_llama(tmp_path / "small", llama_config(vocab_size=500))
    for path in Tokenizer.load(trained.base).files():
        shutil.copy(path, small)
    refused("its tokenizer has 512 ids, its model only 500 rows", small, trained.tokenizer)
    flags = ["--hf_dir", "hf", "--output", "out", "--embedding_init", "random"]
    with pytest.raises(InputError, match="--embedding_init: 'random' is not a choice; known: eeve, mean"):
        parse_options(ConvertHFOptions, flags)
