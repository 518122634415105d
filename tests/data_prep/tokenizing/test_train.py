"""A tokenizer learned by SentencePiece gives its ids, and every text comes back as it was."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokenizing import train
from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import write_jsonl

TEXTS = [*german_texts(150, seed=5), "Tabellen\tund  Abstände   zählen,\n\nZeilen: 2024, 007, 3,50 €."] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    train.train_sentencepiece(TEXTS, 1024, folder, ["<|nutzer|>"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


def plain_ids(tokenizer, text):
    ids = tokenizer.encode([text])[0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    return ids[1:-1]


def test_ids_are_those_of_sentencepiece(folder, tokenizer):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert tokenizer.vocab_size == theirs.vocab_size() == 1024
    for text in [*german_texts(300, seed=6), *TEXTS]:
        assert plain_ids(tokenizer, text) == theirs.encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(" ▁\t\naeß<>|0x\u0301"))
def test_every_text_comes_back(tokenizer, text):
    ids = plain_ids(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id not in ids


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "<0x0A>", "a<|nutzer|>b"])
def test_strings_of_special_tokens_are_text(tokenizer, text):
    ids = plain_ids(tokenizer, text)
    assert min(ids) > 3
    assert tokenizer.decode(ids) == text


def test_training_again_gives_the_same_files(tmp_path, folder):
    train.train_sentencepiece(TEXTS, 1024, tmp_path, ["<|nutzer|>"])
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("vocab_size", [200, 100_000])
def test_an_impossible_vocabulary_is_refused(tmp_path, vocab_size):
    with pytest.raises(InputError, match=str(vocab_size)):
        train.train_sentencepiece(TEXTS, vocab_size, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_the_command_rounds_up_the_vocabulary_and_adds_special_tokens(tmp_path, kind):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    train.train_tokenizer(
        train.Options(
            input=[str(file)], output=tmp_path / "out", vocab_size=500, type=kind, special_tokens=["<pad>"]
        )
    )
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.vocab_size == 512
    assert "<pad>" in {tokenizer.token(number) for number in range(4)}
    assert tokenizer.decode(plain_ids(tokenizer, "<pad> bleibt")) == "<pad> bleibt"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_ids_are_those_of_transformers(tmp_path, kind):
    from transformers import AutoTokenizer

    learn = train.train_byte_level if kind == "byte_level" else train.train_sentencepiece
    learn(TEXTS, 1024, tmp_path)
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in [*german_texts(300, seed=6), *TEXTS, "🤯 ▁ \u0301"]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert plain_ids(ours, text) == ids
        assert theirs.decode(ids) == text
        assert theirs.encode(text) == [ours.bos_id, *ids]  # as every document of training began
