"""What a run validates on: which rows, dealt out how, and what is said of them."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from data_prep.tokenizing import job
from data_prep.tokenizing.train import train_sentencepiece
from lit_gpt.cli import InputError, parse_options
from lit_gpt.hf.mapping import hf_parts, to_hf_config
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import GPT
from lit_gpt.model.loss import IGNORE_INDEX
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.sample_order import validation_rows
from lit_gpt.store.token_store import TokenStore
from lit_gpt.store.tokenizer import Tokenizer
from pretrain.data.batch import Batch
from pretrain.data.inputs import open_inputs
from pretrain.data.validation import Validation, ValidationSample, mean_loss, named_stores, template_warnings
from pretrain.launch.examine import examine
from pretrain.monitor.metrics import read_metrics, read_validation
from pretrain.options import TrainOptions
from tests.german import german_texts
from tests.masked_stores import CHAT, conversations, masked_store
from tests.pretrain.feeding import BLOCK
from tests.pretrain.ranks import train_on_ranks
from tests.pretrain.running import open_run


@pytest.fixture(scope="module")
def packed(val_store_dir):
    return PackedStore.open(TokenStore.open(val_store_dir), BLOCK)


def targets_of_rows(packed):
    """The targets of every row in stored order, by way of the documents."""
    rows = []
    for shard, n_rows in enumerate(packed.rows_per_shard.tolist()):
        packing = packed.rows(shard)
        for row in range(n_rows):
            targets = []
            for segment in range(packing.offsets[row], packing.offsets[row + 1]):
                tokens = packed.store.document_tokens(shard, packing.document[segment])[
                    packing.start[segment] :
                ]
                targets += tokens[1 : packing.length[segment] + 1].tolist()
            rows.append(targets)
    return rows


def test_for_a_gpu_batches_are_page_locked_so_that_copying_does_not_wait(packed, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
    batch = next(ValidationSample(packed, 7).batches(4, device="cuda"))
    assert {id(tensor) for tensor in pinned} == {id(x) for x in (*batch[:3], batch.documents.cu_seqlens)}


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("max_rows", [None, 7])
def test_each_row_comes_once_and_ranks_get_as_many_batches(packed, world, max_rows):
    sample = ValidationSample(packed, max_rows)
    ranks = [list(sample.batches(4, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch.input_ids.shape == (4, BLOCK) for batches in ranks for batch in batches)
    labels = torch.cat([batch.labels for together in zip(*ranks, strict=True) for batch in together])
    every_row = targets_of_rows(packed)
    chosen = range(len(every_row)) if max_rows is None else validation_rows(len(every_row), max_rows)
    expected = [every_row[row] for row in chosen]
    for got, want in zip(labels, expected, strict=False):
        assert got[got != IGNORE_INDEX].tolist() == want
    assert int((labels[len(expected) :] != IGNORE_INDEX).sum()) == 0


def test_the_sample_is_uniform_and_depends_on_nothing_else():
    rows = validation_rows(100_000, 5_000)
    assert np.array_equal(rows, np.unique(rows))
    assert rows.size == 5_000
    assert np.array_equal(rows, validation_rows(100_000, 5_000))
    tenths = np.bincount(rows // 10_000)
    assert tenths.min() > 400
    assert tenths.max() < 600
    # A larger sample holds the smaller one: more eval_iters refine the same estimate.
    assert set(rows) <= set(validation_rows(100_000, 6_000))


@pytest.fixture
def sorted_store(tmp_path, tokenizer_dir):
    """Twenty sources in a store, one after the other, each of 30 documents that say one thing only."""
    files = []
    for number in range(20):
        file = tmp_path / f"source-{number:02d}.jsonl"
        text = f"Nummer {number} " * 8
        lines = [{"id": f"{number}/{line}", "text": text} for line in range(30)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files.append(str(file))
    store = tmp_path / "store"
    job.tokenize(
        job.Options(input=files, tokenizer=tokenizer_dir, output=store, max_shard_tokens=10_000, workers=1)
    )
    return store


def test_a_run_validates_on_all_sources_and_says_on_how_many(tmp_path, train_store_dir, sorted_store, capsys):
    """With one row in three. The first rows of the store would be those of seven sources."""
    settings = {"max_steps": 2, "warmup_steps": 1, "val_data_dir": [str(sorted_store)], "micro_batch_size": 4}
    open_run(tmp_path / "run", train_store_dir, eval_iters=24, **settings).fit()
    packed = PackedStore.open(TokenStore.open(sorted_store), 128)
    sample = ValidationSample(packed, 96)
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("validation: "))
    assert line == sample.describe("validation")[0]
    n_rows = packed.rows_per_shard.sum()
    assert f"96 of {n_rows} rows, a fixed sample of " in line
    assert "of 600 documents, from " in line
    n_sources = int(line.split("from ")[1].split()[0])
    assert n_sources == 20
    assert "warning" not in said

    assert "3 documents are few to validate on" in ValidationSample(packed, 2).describe("validation")[1]
    (complete,) = ValidationSample(packed, None).describe("validation")
    assert complete == f"validation: {n_rows} of {n_rows} rows, all 600 documents, from 20 source(s)"


# ---- what is measured


def write_store(folder: Path, texts: list[str], tokenizer: Path) -> PackedStore:
    file = folder.with_suffix(".jsonl")
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(texts)]
    file.write_text("\n".join(lines) + "\n")
    job.tokenize(
        job.Options(input=[str(file)], tokenizer=tokenizer, output=folder, max_shard_tokens=5_000, workers=1)
    )
    return PackedStore.open(TokenStore.open(folder), BLOCK)


def everything(**settings) -> TrainOptions:
    return TrainOptions(eval_iters=0, micro_batch_size=4, **settings)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_stores_bytes_are_those_of_its_texts(tmp_path, tokenizer_dir, kind):
    """Documents are cut and share rows; ranks have a third each, some of it masked."""
    if kind == "sentencepiece":
        tokenizer_dir = tmp_path / "tokenizer"
        train_sentencepiece(german_texts(100, seed=8), 512, tokenizer_dir)
    texts = [*itertools.islice(german_texts(40, seed=3), 40), " \n日本 🙂\t", "</s>▁<0x41>"]
    packed = write_store(tmp_path / "store", texts, tokenizer_dir)
    ranks = [Validation({"a": packed}, everything(), rank, 3) for rank in range(3)]
    results = [validation.measure(lambda *_: torch.ones(())) for validation in ranks]
    assert sum(result.n_bytes for (result,) in results) == sum(len(text.encode()) for text in texts)
    lengths = [ids.size - 1 for ids in Tokenizer.load(tokenizer_dir).encode(texts)]
    assert sum(result.targets for (result,) in results) == sum(lengths)


def llama_of(model: GPT, config: ModelConfig) -> LlamaForCausalLM:
    llama = LlamaForCausalLM(LlamaConfig(**to_hf_config(config))).double()
    theirs = dict(llama.named_parameters())
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            for part in hf_parts(name, config):
                theirs[part.hf_name].copy_(tensor[part.rows])
    return llama


@torch.no_grad()
def test_losses_and_bits_are_those_of_transformers_on_each_text(tmp_path, tokenizer_dir):
    """Of two stores, the answers alone of a masked one, and their mean, in double precision."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    texts = {
        "de": [text[:70] for text in itertools.islice(german_texts(30, seed=4), 30)],
        "en": ["the quick brown fox", "jumps – over", "the lazy dog"],
    }
    config = ModelConfig.load("tiny_100K", block_size=BLOCK).with_vocab_of(tokenizer.vocab_size)
    torch.manual_seed(1)
    model = GPT(config).double().eval()
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.dim() < 2 else 0.0, 0.2)
    llama = llama_of(model, config)
    stores = {name: write_store(tmp_path / name, those, tokenizer_dir) for name, those in texts.items()}
    dialogues = list(conversations(9))
    chat = TokenStore.open(masked_store(tmp_path / "chat", tokenizer_dir, dialogues))
    stores["chat"] = PackedStore.open(chat, BLOCK)
    validation = Validation(stores, everything())
    share = f"{chat.n_targets / chat.n_tokens:.1%}"
    assert f"validation on chat: masked, {share} of the store's tokens are targets" in validation.describe()
    results = validation.measure(model)
    sums, n_targets = dict.fromkeys(stores, 0.0), 0
    for document in range(chat.n_documents):
        raw = torch.tensor(chat.document_tokens(0, document).astype(int))
        counts, ids = raw[1:] >= 0, raw % 2**31
        logits = llama(ids[None, :-1]).logits[0]
        sums["chat"] += F.cross_entropy(logits[counts], ids[1:][counts], reduction="sum").item()
        n_targets += int(counts.sum())
    texts["chat"] = [text for pieces in dialogues for text, is_target in pieces if is_target]
    for name, those in [*texts.items()][:2]:
        for ids in map(torch.tensor, (row.astype(int) for row in tokenizer.encode(those))):
            assert ids.numel() <= BLOCK  # in one row
            logits = llama(ids[None, :-1]).logits[0]
            sums[name] += F.cross_entropy(logits, ids[1:], reduction="sum").item()
            n_targets += ids.numel() - 1
    for name, result in zip(texts, results, strict=True):
        n_bytes = sum(len(text.encode()) for text in texts[name])
        assert result.store == name
        assert result.bits_per_byte == pytest.approx(sums[name] / math.log(2) / n_bytes, rel=1e-6)
        assert result.loss == pytest.approx(sums[name] / result.targets, rel=1e-6)
    assert mean_loss(results) == pytest.approx(sum(sums.values()) / n_targets, rel=1e-6)


def test_rows_that_fill_up_a_batch_hold_any_pad_token(masked_store_dir, monkeypatch):
    """EOS of a large vocabulary is past uint16."""
    packed = PackedStore.open(TokenStore.open(masked_store_dir), BLOCK)
    sample = ValidationSample(packed, None)
    monkeypatch.setattr(packed.store, "eos_id", 128_001)
    *_, last = sample.batches(len(sample._rows) + 1)
    assert (last.input_ids[-1] == 128_001).all()
    assert (last.labels[-1] == IGNORE_INDEX).all()


def test_a_stop_ends_a_validation_without_a_result(packed):
    asked = []
    result = Validation({"a": packed, "b": packed}, everything()).measure(
        lambda *_: torch.ones(()), lambda: asked.append(1) or len(asked) == 3
    )
    assert result is None
    assert len(asked) == 3


def test_why_bits_are_not_computed_is_said(tmp_path, val_store_dir):
    folder = tmp_path / "store"
    shutil.copytree(val_store_dir, folder)
    definition = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    definition["normalizer"] = {"type": "NFD"}
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(definition))
    validation = Validation({"a": PackedStore.open(TokenStore.open(folder), BLOCK)}, everything())
    assert validation.describe()[-1].startswith("bits per byte: not computed: the tokenizer's rules change")
    (result,) = validation.measure(lambda *_: torch.ones(()))
    assert (result.n_bytes, result.bits_per_byte) == (None, None)


# ---- names


def test_stores_have_names(tmp_path):
    (tmp_path / "a=b").mkdir()
    given = ["de=data/x", "data/val.2/", f"{tmp_path}/a=b", "straße"]
    assert named_stores(given) == {
        "de": Path("data/x"),
        "val.2": Path("data/val.2"),
        "a_b": tmp_path / "a=b",
        "stra_e": Path("straße"),
    }
    for entries, message in [
        (["x/val", "y/val"], "x/val and y/val are both named val; write NAME=DIR"),
        (["a b=x"], "'a b' is no name"),
        (["=x"], "'' is no name"),
        ([f"{tmp_path}@0-5:2"], f"belong to --train_data_dir; give {tmp_path} alone"),
        ([f"x={tmp_path}:0.5"], "shares and weights belong to --train_data_dir"),
    ]:
        with pytest.raises(InputError, match=message):
            named_stores(entries)


def test_one_store_may_be_given_as_before(tmp_path):
    file = tmp_path / "config.yaml"
    for text, expected in [("data/val", ["data/val"]), ("null", None), ("[a=x, b=y]", ["a=x", "b=y"])]:
        file.write_text(f"val_data_dir: {text}\n")
        assert parse_options(TrainOptions, ["--config", str(file)]).val_data_dir == expected
    options = TrainOptions(train_data_dir=["x"], out_dir="y", val_data_dir="val")  # of an old state.json
    options.check()
    assert options.val_data_dir == ["val"]


def test_every_store_is_of_the_training_datas_tokenizer(tmp_path, train_store_dir, val_store_dir):
    train_sentencepiece(german_texts(100, seed=8), 512, tmp_path / "tokenizer")
    write_store(tmp_path / "other", ["ein Wald"], tmp_path / "tokenizer")
    options = TrainOptions(train_data_dir=[str(train_store_dir)], model_name="tiny_100K")
    options.val_data_dir = [f"a={val_store_dir}", f"b={tmp_path / 'other'}"]
    with pytest.raises(InputError, match="other was made with another tokenizer than the training data"):
        open_inputs(options)


def test_another_chat_template_than_the_trainings_is_told(
    tmp_path, tokenizer_dir, train_store_dir, val_store_dir, masked_store_dir
):
    other = masked_store(tmp_path / "o", tokenizer_dir, conversations(9), replace(CHAT, template="other"))
    stores = [val_store_dir, masked_store_dir, other]
    [told] = template_warnings(CHAT, map(TokenStore.open, stores))
    assert told.startswith(f"warning: --val_data_dir {other}: its chat template is not that of the training")
    assert template_warnings(None, map(TokenStore.open, stores)) == []
    options = TrainOptions(
        [str(train_store_dir), str(masked_store_dir)], out_dir=str(tmp_path / "out"), model_name="tiny_100K"
    )
    options.max_steps, options.val_data_dir = 5, [str(other)]
    assert told.removeprefix("warning: ") in examine(options).stages[0].remarks


@pytest.mark.slow
def test_every_world_size_validates_on_the_same_sample(tmp_path, train_store_dir, val_store_dir):
    lines, losses = [], []
    settings = {"max_steps": 1, "warmup_steps": 0, "eval_iters": 5}
    settings["val_data_dir"] = [f"de={val_store_dir}", f"train={train_store_dir}"]
    open_run(tmp_path / "one", train_store_dir, **settings).fit()
    train_on_ranks(2, tmp_path / "two", train_store_dir, **settings)
    for run in (tmp_path / "one", tmp_path / "two"):
        losses.append(read_metrics(run / "metrics.csv")[-1]["val_loss"])
        lines.append(read_validation(run / "validation.csv"))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for one, other in zip(*lines, strict=True):
        assert (one.step, one.store, one.targets) == (other.step, other.store, other.targets)
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.bits_per_byte == pytest.approx(other.bits_per_byte, abs=1e-5)
    assert [(line.step, line.store) for line in lines[0]] == [
        (0, "de"), (0, "train"), (1, "de"), (1, "train")
    ]  # fmt: skip
