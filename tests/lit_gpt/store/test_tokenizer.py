"""Ids are those of plain encoding and of `AutoTokenizer`; texts come back; a bad folder is one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from data_prep.tokenizing.train import train_sentencepiece
from lit_gpt.cli import InputError
from lit_gpt.store import word_cache
from lit_gpt.store.tokenizer import Tokenizer
from tests.german import german_texts

# What breaks cutting into words: spaces of all kinds, marks next to line ends, added and special strings.
PIECES = [
    "Wort",
    " wort",
    "ß",
    "'s",
    "'S",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2028",
    ".",
    "!\n",
]
PIECES += [
    "<s>",
    "</s>",
    "<",
    "$",
    "▁",
    "x▁y",
    "1234567",
    "²",
    "é",
    "☃",
    "👩‍👩‍👧",
    "\0",
    "文字",
    "<unk>",
    "e\u0301",
]
texts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_dir)


@pytest.fixture(scope="module")
def spaces_as_letters_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder made like the released one: `▁` for spaces, single characters added, unknown ones fused."""
    folder = tmp_path_factory.mktemp("spaces_as_letters")
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        german_texts(60, seed=1), trainers.BpeTrainer(vocab_size=300, special_tokens=special)
    )
    backend.add_tokens([AddedToken(one, normalized=True) for one in "\n<$"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    definition = json.loads(backend.to_str())
    definition["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    config = {
        "add_prefix_space": False,
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentencepiece")
    train_sentencepiece(german_texts(60, seed=1), 400, folder)
    return folder


@pytest.mark.parametrize("kind", ["tokenizer_dir", "spaces_as_letters_dir", "sentencepiece_dir"])
def test_cached_ids_are_the_librarys_own(kind: str, request: pytest.FixtureRequest):
    folder = request.getfixturevalue(kind)
    definition = json.loads((folder / "tokenizer.json").read_text())
    if kind == "spaces_as_letters_dir":
        definition["pre_tokenizer"]["prepend_scheme"] = "never"
    library = tokenizers.Tokenizer.from_str(json.dumps(definition))
    library.encode_special_tokens = True
    ours = Tokenizer.load(folder)
    assert ours._words is not None

    @settings(max_examples=300, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        expected = [ours.bos_id, *library.encode(text, add_special_tokens=False).ids, ours.eos_id]
        assert ours.encode([text])[0].tolist() == expected

    check()
    corpus = list(german_texts(50, seed=2))
    for text, ids in zip(corpus, ours.encode(corpus), strict=True):
        assert ids[1:-1].tolist() == library.encode(text, add_special_tokens=False).ids


def test_a_full_cache_forgets_and_stays_right(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(word_cache, "_GENERATION", 10)
    corpus = list(german_texts(30, seed=3))
    cached, plain = Tokenizer.load(tokenizer_dir), Tokenizer.load(tokenizer_dir, cache_words=False)
    for mine, expected in zip(cached.encode(corpus), plain.encode(corpus), strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert cached._words is not None
    assert len(cached._words) <= 10


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFC"}},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_where_no_safe_cut_is_known_there_is_no_cache(tokenizer_dir: Path, tmp_path: Path, change: dict):
    folder = _copy(tokenizer_dir, tmp_path, "tokenizer.json", change)
    assert Tokenizer.load(folder)._words is None


def test_merges_over_a_space_rule_out_the_cache(spaces_as_letters_dir: Path, tmp_path: Path):
    definition = json.loads((spaces_as_letters_dir / "tokenizer.json").read_text())
    model = definition["model"]
    model["vocab"]["n▁"] = 299 + len(definition["added_tokens"])
    model["merges"].append(["n", "▁"])
    folder = _copy(spaces_as_letters_dir, tmp_path, "tokenizer.json", {"model": model})
    assert Tokenizer.load(folder)._words is None


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode([text])[0]
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.bos_id not in ids[1:-1]
    assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_auto_tokenizer_gives_our_ids(tokenizer_dir: Path):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(tokenizer_dir), Tokenizer.load(tokenizer_dir)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    corpus = [*german_texts(100, seed=4), *PIECES]
    expected = theirs(corpus, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert [ids[1:-1].tolist() for ids in ours.encode(corpus)] == expected
    assert theirs.decode(expected[0]) == corpus[0]


def test_the_fingerprint_is_of_what_gives_ids(tokenizer_dir: Path, tmp_path: Path):
    original = Tokenizer.load(tokenizer_dir)
    other_name = _copy(tokenizer_dir, tmp_path / "a", "tokenizer_config.json", {"model_max_length": 7})
    other_bos = _copy(tokenizer_dir, tmp_path / "b", "tokenizer_config.json", {"bos_token": "</s>"})
    assert Tokenizer.load(other_name).fingerprint == original.fingerprint
    assert Tokenizer.load(other_bos).fingerprint != original.fingerprint


def test_ids_past_uint16_are_int32(tokenizer_dir: Path, tmp_path: Path):
    added = {"id": 70_000, "content": "<far>", "special": True, "normalized": False}
    added |= {"lstrip": False, "rstrip": False, "single_word": False}
    definition = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    definition["model"]["vocab"]["<far>"] = 70_000
    tokens = [*definition["added_tokens"], added]
    folder = _copy(
        tokenizer_dir, tmp_path, "tokenizer.json", {"model": definition["model"], "added_tokens": tokens}
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 70_001
    assert tokenizer.encode(["Wort"])[0].dtype == np.int32
    assert tokenizer.decode(tokenizer.encode(["Wort"])[0]) == "Wort"


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer_config.json", None, "tokenizer_config.json is missing"),
        ("tokenizer.json", "{", "not readable JSON"),
        ("tokenizer.json", "[]", "not a JSON object"),
        ("tokenizer.json", '{"model": {"type": "Strange"}}', "does not load"),
        ("tokenizer.json", "[" * 100_000, "not readable JSON"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "bos_token"),
        ("tokenizer_config.json", '{"bos_token": "<s>", "eos_token": "<nowhere>"}', "eos_token"),
        ("tokenizer_config.json", '{"bos_token": "<s>", "eos_token": 7}', "eos_token"),
    ],
)
def test_a_bad_folder_is_one_line(
    tokenizer_dir: Path, tmp_path: Path, file: str, content: str | None, says: str
):
    folder = tmp_path / "bad"
    shutil.copytree(tokenizer_dir, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=says) as error:
        Tokenizer.load(folder)
    assert "\n" not in str(error.value)


def _copy(folder: Path, to: Path, file: str, change: dict) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    (to / file).write_text(json.dumps(json.loads((to / file).read_text()) | change))
    return to
