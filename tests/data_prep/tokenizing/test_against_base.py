"""Continued, appended and fresh vocabularies in one table; the curve's points are tokenizers of that size."""

import json

import pytest
import tokenizers

from data_prep import evaluate_tokenizer
from data_prep.tokenizing import train
from data_prep.tokenizing.against_base import append, appended_tokens, curve, n_unreachable
from data_prep.tokenizing.continued_bpe import Base
from data_prep.tokenizing.extend import Options, extend_tokenizer
from lit_gpt.errors import InputError
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import write_jsonl
from tests.data_prep.tokenizing import kinds_of_bases


@pytest.fixture(scope="module")
def texts():
    return kinds_of_bases.passages()


@pytest.fixture(scope="module")
def passages(tmp_path_factory, texts):
    records = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    return write_jsonl(tmp_path_factory.mktemp("passages") / "de.jsonl", records)


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def folders(request, tmp_path_factory, passages, texts):
    """(base, continued, fresh)"""
    folder = tmp_path_factory.mktemp(request.param)
    learn = train.train_byte_level if request.param == "byte_level" else train.train_sentencepiece
    learn(german_texts(60, seed=1), 400, folder / "base")
    learn(texts, 600, folder / "fresh")
    extend_tokenizer(Options(folder / "base", [str(passages)], folder / "continued", 150, held_out=0.1))
    return folder / "base", folder / "continued", folder / "fresh"


def test_the_table_has_base_continued_fresh_and_appended(folders, passages, tmp_path):
    base, continued, fresh = folders
    evaluate_tokenizer.main(
        evaluate_tokenizer.Options(
            input=[str(passages)], base=base, tokenizers=[continued, fresh], output=tmp_path / "out"
        )
    )
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "tokenizers.json").read_text())}
    assert [*rows] == ["base", "continued", "fresh", "fresh appended"]
    per_word = {name: row["tokens_per_word"] for name, row in rows.items()}
    assert per_word["continued"] < per_word["fresh appended"] < per_word["base"]
    assert rows["continued"]["unreachable"] == 0 < rows["fresh appended"]["unreachable"]
    change = per_word["continued"] / per_word["base"] - 1
    assert rows["continued"]["change"] == f"{change:+.1%}"
    assert (tmp_path / "out" / "vocabulary.png").stat().st_size > 1000
    assert len((tmp_path / "out" / "tokenizers.md").read_text().splitlines()) == 6


def test_the_curve_has_the_tokens_of_tokenizers_of_each_size(folders, texts, tmp_path):
    base, fresh = Base(folders[0]), Base(folders[2])
    n_words = sum(len(text.split()) for text in texts)
    for n_new in (50, 100):
        (tmp_path / str(n_new)).mkdir()
        tokenizer, contents = append(base, fresh, n_new, tmp_path / str(n_new))
        points = dict(curve(base, tokenizer, n_new, texts))
        n_tokens = sum(len(ids) - 2 for ids in tokenizer.encode(texts))
        assert points[n_new] == round(n_tokens / n_words, 4)
        if n_new == 50:
            at_fifty = points[50]
    assert points[50] == at_fifty
    assert len(contents) == 100


def test_appended_tokens_are_the_fresh_ones_and_some_are_never_made(folders, tmp_path):
    base, fresh = Base(folders[0]), Base(folders[2])
    tokens = appended_tokens(base, fresh)
    contents = [token.content for token in tokens]
    assert {*contents} <= {*fresh.contents.values()} - base.taken
    assert len(contents) == len({*contents})
    tokenizer, _ = append(base, fresh, len(tokens), tmp_path)
    # By another route: a token is made if the library encodes its own text to it.
    space = " " if not base.byte_level else "Ġ"
    plain = [content.replace(space, " ") for content in contents if content.replace(space, " ").isascii()]
    missed = sum(len(tokenizer.encode([text])[0]) != 3 for text in plain)
    assert 0 < missed <= n_unreachable(tokenizer, contents, base.byte_level)


def test_an_extension_of_another_base_is_refused(folders, passages, tmp_path):
    options = evaluate_tokenizer.Options(
        input=[str(passages)], base=folders[2], tokenizers=[folders[1]], output=tmp_path / "out"
    )
    with pytest.raises(InputError, match="extends another tokenizer than --base"):
        evaluate_tokenizer.main(options)


def test_a_tokenizer_whose_tokens_cannot_be_appended_is_compared_without(folders, passages, tmp_path, capsys):
    base, continued, _ = folders
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<s>", 0.0), ("</s>", 0.0), ("e", -1.0)], 0))
    (tmp_path / "unigram").mkdir()
    unigram.save(str(tmp_path / "unigram" / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "unigram" / "tokenizer_config.json").write_text(json.dumps(names))
    of_kind = {True: "sentencepiece", False: "byte_level"}[Base(base).byte_level]
    other = kinds_of_bases.base_of_kind(of_kind, tmp_path / "other")
    evaluate_tokenizer.main(
        evaluate_tokenizer.Options(
            input=[str(passages)],
            base=base,
            tokenizers=[tmp_path / "unigram", continued, other],
            output=tmp_path / "out",
        )
    )
    rows = [row["name"] for row in json.loads((tmp_path / "out" / "tokenizers.json").read_text())]
    assert rows == ["base", "unigram", "continued", "other"]
    said = capsys.readouterr().out
    assert f"no row for the tokens of {tmp_path / 'unigram'} appended to {base}: " in said
    assert "Unigram, not BPE" in said
    assert f"no row for the tokens of {other} appended to {base}: only one of the two is byte-level" in said
