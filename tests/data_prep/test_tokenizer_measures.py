"""Comparing tokenizers, and limits proposed for tokens per word."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import evaluate_tokenizer, token_ratio
from data_prep.token_ratio import propose
from lit_gpt.cli import InputError
from lit_gpt.store.tokenizer import Tokenizer
from tests.conftest import german_texts
from tests.data_prep.corpus_tools import write_jsonl


def letters_tokenizer(folder):
    """One token for a letter; what is not a to e or a space is unknown."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *"abcde "])}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>", "fuse_unk": False},
    }
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_measures_of_a_tokenizer_that_can_be_counted_by_hand(tmp_path):
    measures = evaluate_tokenizer.measure(
        Tokenizer.load(letters_tokenizer(tmp_path / "letters")), ["ab xab", "c"], "letters"
    )
    assert measures == evaluate_tokenizer.Measures(
        name="letters",
        vocab_size=9,
        tokens_per_word=round(7 / 3, 4),
        bytes_per_token=1.0,
        whole_words=0.0,
        used_vocabulary=round(5 / 9, 4),
        unknown_per_million=round(1e6 / 7, 2),
        changed_texts=0.5,
    )


def test_the_comparison_has_a_row_a_tokenizer(tmp_path, tokenizer_dir, corpus_files):
    letters = letters_tokenizer(tmp_path / "letters")
    options = evaluate_tokenizer.Options(
        input=[str(corpus_files[1])],
        tokenizers=[tokenizer_dir, letters],
        output=tmp_path / "out",
        sample_mb=0.02,
    )
    evaluate_tokenizer.main(options)
    trained, by_letter = json.loads((tmp_path / "out" / "tokenizers.json").read_text())
    assert trained["tokens_per_word"] < by_letter["tokens_per_word"]
    assert (trained["unknown_per_million"], trained["changed_texts"]) == (0, 0)
    assert by_letter["unknown_per_million"] > 0
    assert len((tmp_path / "out" / "tokenizers.md").read_text().splitlines()) == 4
    assert (tmp_path / "out" / "tokenizers.png").stat().st_size > 1000


def test_folders_of_the_same_name_have_rows_of_their_own():
    folders = [
        Path("old/tok"),
        Path("new/tok"),
        Path("other"),
        Path("/x/run/out/tok"),
        Path("/y/run/out/tok"),
    ]
    names = ["old/tok", "new/tok", "other", "x/run/out/tok", "y/run/out/tok"]
    assert evaluate_tokenizer.row_names(folders) == names
    assert evaluate_tokenizer.row_names([Path("/tok"), Path("/x/tok")]) == ["/tok", "x/tok"]


def test_proposed_limits_part_prose_from_noise():
    rng = np.random.default_rng(0)
    prose = np.exp(rng.normal(np.log(1.6), 0.08, 5000))
    noise = np.concatenate([rng.uniform(3, 12, 200), rng.uniform(0.3, 0.9, 50)])
    ratios = np.concatenate([prose, noise])
    proposal = propose(ratios, np.ones(len(ratios)), deviations=3)
    low, high = proposal.min_tokens_per_word, proposal.max_tokens_per_word
    assert np.mean((prose > low) & (prose < high)) > 0.99
    assert not np.any((noise > low) & (noise < high))
    assert proposal.documents_dropped == pytest.approx(np.mean((ratios < low) | (ratios > high)), abs=1e-5)


def test_the_command_writes_a_plot_and_refuses_a_sample_without_long_documents(tmp_path, tokenizer_dir):
    texts = list(german_texts(60, seed=9))
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    options = token_ratio.Options(input=[str(file)], tokenizer=tokenizer_dir, output=tmp_path / "out")
    token_ratio.main(options)
    written = json.loads((tmp_path / "out" / "token_ratio.json").read_text())
    assert written["documents"] == sum(len(text.split()) >= 50 for text in texts)
    assert written["min_tokens_per_word"] < written["middle"] < written["max_tokens_per_word"]
    assert (tmp_path / "out" / "token_ratio.png").stat().st_size > 1000
    options.min_words = 10**6
    with pytest.raises(InputError, match="--min_words"):
        token_ratio.main(options)
