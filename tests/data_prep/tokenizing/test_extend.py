"""An extended tokenizer: exact on every document, no token unreachable, the same ids in every library."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.reading.documents import Document, read_documents
from data_prep.reading.rejects import Rejects
from data_prep.tokenizing import continued_bpe, extend, gain, held_out, train
from data_prep.tokenizing.continued_bpe import Base, NewToken, count_words
from data_prep.tokenizing.extend import Options, extend_tokenizer, write_extended
from data_prep.tokenizing.reachable import find_text
from data_prep.tokenizing.work import is_validation
from lit_gpt.errors import InputError
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer
from scripts.client_environments import TRANSFORMERS, find_python
from tests.data_prep.corpus_tools import write_jsonl
from tests.data_prep.tokenizing.kinds_of_bases import KINDS, base_of_kind, passages

COMMAND = Path(train.__file__).parents[1] / "extend_tokenizer.py"
CORPUS = os.environ.get("LLAMMLEIN_CORPUS")  # a glob of documents to check instead of the passages
NEW_TOKENS = 150
SPECIAL = ["<|im_start|>", "</s>", "<|im_end|>"]


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    """The passages as documents, often enough for pairs to repeat."""
    documents = [{"id": str(number), "text": text} for number, text in enumerate(passages())]
    return write_jsonl(tmp_path_factory.mktemp("german") / "de.jsonl", documents)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory, german):
    """(base, extended)"""
    folder = tmp_path_factory.mktemp(request.param)
    base = base_of_kind(request.param, folder / "base")
    extend_tokenizer(Options(base, [str(german)], folder / "out", NEW_TOKENS, SPECIAL, held_out=0.1))
    return base, folder / "out"


def documents(german):
    """Every document that the tests are to be held against."""
    files = sorted(Path(CORPUS).parent.glob(Path(CORPUS).name)) if CORPUS else [german]
    return [document.text for document in read_documents(files, Rejects())]


def test_new_ids_stand_for_old_ids_in_every_document(pair, german):
    check_exact(*pair, documents(german))


def test_a_given_tokenizer_is_extended_exactly(tmp_path, german, tokenizer_dir):
    """TEST_TOKENIZER names another folder: of a tokenizer that exists, such as that of a released model."""
    base = Path(os.environ.get("TEST_TOKENIZER", tokenizer_dir))
    given = [CORPUS or str(german)]
    extend_tokenizer(Options(base, given, tmp_path / "out", NEW_TOKENS, ["<|a|>"], held_out=0.1))
    check_exact(base, tmp_path / "out", documents(german))


@pytest.mark.parametrize("kind", ["ignore_merges", "llama2", "added"])
def test_special_tokens_alone_change_no_encoding(tmp_path, german, kind):
    base = base_of_kind(kind, tmp_path / "base")
    add = Options(base, [str(german)], tmp_path / "out", 0, ["<|user|>", "<|bot|>"], held_out=0.1)
    extend_tokenizer(add)
    old, new, extension = Tokenizer.load(base), Tokenizer.load(add.output), Extension.read(add.output)
    assert (extension.new_tokens, [*extension.special_tokens]) == ({}, add.special_tokens)
    assert [new.id_of(name) for name in add.special_tokens] == [old.vocab_size, old.vocab_size + 1]
    texts = [*documents(german)[:200], "".join(add.special_tokens)]
    assert [ids.tolist() for ids in new.encode(texts)] == [ids.tolist() for ids in old.encode(texts)]
    with pytest.raises(InputError, match="--new_tokens 0 adds nothing"):
        extend_tokenizer(Options(add.output, [str(german)], tmp_path / "again", 0, add.special_tokens))


def check_exact(base_folder, folder, texts):
    base, extended, extension = Tokenizer.load(base_folder), Tokenizer.load(folder), Extension.read(folder)
    assert extension.base == base.fingerprint
    assert (extension.first_new_id, len(extension.new_tokens)) == (base.vocab_size, NEW_TOKENS)
    assert extended.vocab_size == extension.vocab_size
    shorter = 0
    for text in texts:
        old, new = base.encode([text])[0].tolist(), extended.encode([text])[0].tolist()
        assert extension.to_base(new) == old
        assert extended.decode(new) == base.decode(old)
        shorter += len(old) - len(new)
    assert shorter > 0
    for token in range(base.vocab_size):
        assert extended.token(token) == base.token(token)


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(" ▁\t\naeßnrst<|im_>7.,"))
def test_new_ids_stand_for_old_ids_in_any_text(pair, text):
    base, extended = map(_loaded, pair)
    new = extended.encode([text])[0].tolist()
    assert Extension.read(pair[1]).to_base(new) == base.encode([text])[0].tolist()


def _loaded(folder, _cache={}):  # noqa: B006
    return _cache.setdefault(folder, Tokenizer.load(folder))


def test_every_new_token_is_in_the_encoding_of_some_text(pair):
    extended, extension = Tokenizer.load(pair[1]), Extension.read(pair[1])
    byte_level = "ByteLevel" in (pair[1] / "tokenizer.json").read_text()
    library = library_tokenizer(pair[1])
    for token in extension.new_tokens:
        text = find_text(extended.token(token), extended, byte_level)
        assert token in library.encode(text, add_special_tokens=False).ids


def library_tokenizer(folder):
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    return library


def test_the_library_gives_our_ids(pair, german):
    extended, library = Tokenizer.load(pair[1]), library_tokenizer(pair[1])
    for text in documents(german)[:300]:
        assert extended.encode([text])[0][1:-1].tolist() == library.encode(text, add_special_tokens=False).ids


def test_special_tokens_keep_their_ids_or_follow_the_new_tokens(pair):
    base, extended = map(Tokenizer.load, pair)
    extension, library = (
        Extension.read(pair[1]),
        tokenizers.Tokenizer.from_file(str(pair[1] / "tokenizer.json")),
    )
    new = [name for name in SPECIAL if base.id_of(name) is None]
    first = base.vocab_size + NEW_TOKENS
    assert extension.special_tokens == {name: first + number for number, name in enumerate(new)}
    for name in SPECIAL:
        assert library.encode(f"a{name}b", add_special_tokens=False).ids.count(library.token_to_id(name)) == 1
        assert extended.id_of(name) == (
            base.id_of(name) if name not in new else extension.special_tokens[name]
        )
        assert extended.id_of(name) not in extended.encode([f"a{name}b"])[0][1:-1]


def test_digits_and_words_stay_apart(pair):
    """Not byte-level: a new token has no two digits, no space inside, and letters or marks only."""
    extended = Tokenizer.load(pair[1])
    contents = [extended.token(token) for token in Extension.read(pair[1]).new_tokens]
    if "ByteLevel" not in (pair[1] / "tokenizer.json").read_text():
        for content in contents:
            text = content.lstrip("▁ ")
            assert not any(character.isnumeric() for character in text) or len(text) == 1
            assert text.isalpha() or not any(character.isalpha() for character in text)


@pytest.mark.parametrize("pair", ["sentencepiece"], indirect=True)
def test_sentencepiece_reads_the_model_with_our_ids(pair, german):
    """In most documents: it merges by piece, which the command has counted on the held-out ones."""
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(pair[1] / "tokenizer.model"))
    extended, texts = Tokenizer.load(pair[1]), documents(german)
    assert theirs.vocab_size() == extended.vocab_size
    same = sum(theirs.encode(text) == extended.encode([text])[0][1:-1].tolist() for text in texts)
    assert same > 0.9 * len(texts)


@pytest.mark.slow
def test_the_command_is_deterministic_and_refuses_with_code_2(tmp_path, german, tokenizer_dir):
    """Neither threads nor hash seeds make a difference."""
    written = set()
    for number in ("1", "3"):
        words = [sys.executable, str(COMMAND), "--tokenizer", str(tokenizer_dir), "--input", str(german)]
        words += ["--new_tokens", "100", "--held_out", "0.1", "--output", str(tmp_path / number)]
        environment = os.environ | {"RAYON_NUM_THREADS": number, "PYTHONHASHSEED": number}
        subprocess.run(words, check=True, env=environment)
        files = ("tokenizer.json", "tokenizer_config.json", "extension.json")
        written.add(tuple((tmp_path / number / name).read_bytes() for name in files))
    assert len(written) == 1
    again = subprocess.run(words, capture_output=True, text=True)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "already exists" in again.stderr


LOAD = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = [tokenizer.encode(text, add_special_tokens=False) for text in json.load(sys.stdin)]
json.dump([ids, tokenizer.convert_tokens_to_ids(sys.argv[2:])], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", TRANSFORMERS)
def test_transformers_gives_our_ids(pair, german, package):
    python = find_python(package)
    if python is None:
        pytest.skip(f"no {package}: run python scripts/client_environments.py")
    texts = [text for text in documents(german)[:300] if "<" not in text]
    command = [str(python), "-c", LOAD, str(pair[1]), *SPECIAL]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    extended = Tokenizer.load(pair[1])
    ids, special = json.loads(done.stdout)
    assert ids == [encoded[1:-1].tolist() for encoded in extended.encode(texts)]
    assert special == [extended.id_of(name) for name in SPECIAL]


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (
            {"type": "Unigram", "vocab": [["a", 0.0], ["<s>", 0.0], ["</s>", 0.0]], "unk_id": 0},
            {},
            "Unigram, not BPE",
        ),
        (
            {"type": "WordPiece", "max_input_chars_per_word": 100, "unk_token": "<s>"},
            {},
            "WordPiece, not BPE",
        ),
        ({"end_of_word_suffix": "</w>"}, {}, "end_of_word_suffix"),
        ({"vocab": None}, {}, "no vocab"),
        ({}, {"new_tokens": 10**12}, r"gives [\d,]+ new tokens, --new_tokens is 1,000,000,000,000"),
        ({}, {"special_tokens": ["e"]}, "'e' is an ordinary token"),
        ({}, {"special_tokens": ["über"]}, "'über' is an ordinary token"),  # spelled Ã¼ber
        ({}, {"held_out": 1e-9}, "held out"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, german, tokenizer_dir, change, options, says):
    shutil.copytree(tokenizer_dir, tmp_path / "base")
    file = tmp_path / "base" / "tokenizer.json"
    definition = json.loads(file.read_text())
    definition["model"] = {
        name: value
        for name, value in {**definition["model"], **change}.items()
        if (name, value) != ("vocab", None)
    }
    if change.get("type") in ("Unigram", "WordPiece"):
        for name in {"merges", "dropout", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"} - {
            *change
        }:
            definition["model"].pop(name, None)
    file.write_text(json.dumps(definition))
    given = {"tokenizer": tmp_path / "base", "input": [str(german)], "output": tmp_path / "out"}
    with pytest.raises(InputError, match=says) as refused:
        extend_tokenizer(Options(**{**given, "new_tokens": 20, "held_out": 0.1, **options}))
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("kind", "of_base", "new", "says"),
    [
        ("llama2", [], ["☃"], "--special_tokens: the text '☃' would be encoded as the special token '☃'"),
        ("ignore_merges", [], ["ENDOFTURN"], "--special_tokens: the text .* special token 'ENDOFTURN'"),
        ("ignore_merges", [], ["ĠENDOFTURN"], "--special_tokens: the text ' ENDOFTURN' would be encoded"),
        ("added", [], ["<0x1F>"], "'<0x1F>' stands for a byte"),  # which this base lacks
        ("gpt2", [], ["ENDOFTURN", "☃"], None),
        ("ignore_merges", ["ENDOFTURN"], [], "base cannot be extended: the text .* token 'ENDOFTURN'"),
    ],
)
def test_special_tokens_that_plain_text_reaches_are_refused(tmp_path, german, kind, of_base, new, says):
    """Held-out text need not have them."""
    base = base_of_kind(kind, tmp_path / "base")
    definition = json.loads((base / "tokenizer.json").read_text())
    for content in of_base:
        added = definition["added_tokens"]
        added.append({**added[0], "id": added[-1]["id"] + 1, "content": content})
    (base / "tokenizer.json").write_text(json.dumps(definition))
    options = Options(base, [str(german)], tmp_path / "out", 20, new, held_out=0.1)
    if says is None:
        extend_tokenizer(options)
        texts = [form.format(name) for name in new for form in ("{}", " {}", "a\n{}", "a{}b")]
        old, extended = (Tokenizer.load(folder).encode(texts) for folder in (base, tmp_path / "out"))
        to_base = Extension.read(tmp_path / "out").to_base
        assert [to_base(ids.tolist()) for ids in extended] == [ids.tolist() for ids in old]
        return
    with pytest.raises(InputError, match=says):
        extend_tokenizer(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", b"IQ== 0\n"]
)
def test_a_file_that_is_no_sentencepiece_model_is_left_out(tmp_path, german, capsys, data):
    """An empty file, a pointer of git-lfs, and ranks as of tiktoken."""
    base = base_of_kind("sentencepiece", tmp_path / "base")
    (base / "tokenizer.model").write_bytes(data)
    extend_tokenizer(Options(base, [str(german)], tmp_path / "out", 20, held_out=0.1))
    assert f"left out; {base / 'tokenizer.model'} is no SentencePiece model" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.model").exists()


def test_a_tokenizer_that_is_not_exact_is_not_written(tmp_path, german, tokenizer_dir, monkeypatch):
    """Were the merges to outrank the old ones, the check would see it."""

    def first_merges(base, tokens, special_tokens, folder):
        extension = write_extended(base, tokens, special_tokens, folder)
        definition = json.loads((folder / "tokenizer.json").read_text())
        definition["model"]["merges"] = definition["model"]["merges"][::-1]
        (folder / "tokenizer.json").write_text(json.dumps(definition))
        return extension

    monkeypatch.setattr(extend, "write_extended", first_merges)
    monkeypatch.setattr(extend, "find_text", lambda *_: "")
    with pytest.raises(InputError, match="differently when extended"):
        extend_tokenizer(Options(tokenizer_dir, [str(german)], tmp_path / "out", 50, held_out=0.1))
    assert not list(tmp_path.iterdir())


def test_half_characters_are_completed(tmp_path):
    """Cyrillic on a German base: tokens of a space and half a letter have texts too."""
    folder = base_of_kind("byte_level", tmp_path / "base")
    texts = [
        "Бег утром полезен для здоровья человека и его хорошего настроения. " * 3,
        "Белый снег лежит на поле.",
    ]
    file = write_jsonl(tmp_path / "ru.jsonl", [{"id": str(n), "text": texts[n % 2]} for n in range(40)])
    extend_tokenizer(Options(folder, [str(file)], tmp_path / "out", 60, held_out=0.2))
    extended, extension = Tokenizer.load(tmp_path / "out"), Extension.read(tmp_path / "out")
    halves = 0
    for token in extension.new_tokens:
        text = find_text(extended.token(token), extended, byte_level=True)
        assert token in extended.encode([text])[0]
        halves += "\ufffd" in extended.decode([token])
    assert halves > 0


def test_the_rarest_words_are_forgotten_where_there_are_too_many(german, tokenizer_dir, monkeypatch):
    base, texts = Base(tokenizer_dir), documents(german) * 3  # no word occurs once
    complete, forgotten = count_words(texts, base)
    assert (min(complete.values()), forgotten) == (3, 0)
    monkeypatch.setattr(continued_bpe, "_MAX_WORDS", 100)
    words, forgotten = count_words(texts, base)
    assert words == {word: count for word, count in complete.items() if count > forgotten}
    assert len(words) <= 100 < sum(count >= forgotten for count in complete.values())


def test_held_out_text_is_bounded_and_none_of_it_is_learned(monkeypatch):
    """Kept are the documents of the lowest hashes, wherever they are."""
    monkeypatch.setattr(held_out, "_MAX_BYTES", 2000)
    given = [Document(str(number), f"text {number:05}", "a.jsonl", 1, {}) for number in range(2000)]
    held = held_out.HeldOut(0.5)
    learned = [*held.take_from(given)]
    assert learned == [one.text for one in given if not is_validation(one.id, 0.5)]
    kept = [one.text for one in given if is_validation(one.id, 0.5 / 8)]
    assert held.texts == kept
    assert sum(map(len, kept)) <= 2000 < 2 * sum(map(len, kept))
    assert held.n_dropped == 2000 - len(learned) - len(kept)


def test_what_memory_left_out_is_said(tmp_path, german, tokenizer_dir, monkeypatch, capsys):
    monkeypatch.setattr(continued_bpe, "_MAX_WORDS", 200)
    monkeypatch.setattr(held_out, "_MAX_BYTES", 10_000)
    extend_tokenizer(Options(tokenizer_dir, [str(german)], tmp_path / "out", 20, SPECIAL, held_out=0.5))
    said = capsys.readouterr().out
    assert re.search(r"^words: too many .* up to [1-9]\d* occurrences", said, re.MULTILINE)
    assert re.search(r"^held out: [1-9]\d* further documents", said, re.MULTILINE)
    assert "new ids: 512 to 531; some text is encoded to each\nspecial token: <|im_start|> = 532" in said


def test_the_gain_by_prefix_is_that_of_a_tokenizer_of_this_size(pair, german, tmp_path):
    """The curve is computed from one encoding; the tokenizer of half the size must agree."""
    base = Base(pair[0])
    tokens = [
        NewToken(*merge, Extension.read(pair[1]).new_tokens[token])
        for token, merge in enumerate(merges_of(pair[1])[-NEW_TOKENS:], base.tokenizer.vocab_size)
    ]
    (tmp_path / "half").mkdir()
    write_extended(base, tokens[: NEW_TOKENS // 2], [], tmp_path / "half")
    texts = documents(german)
    half, extended = Tokenizer.load(tmp_path / "half"), Tokenizer.load(pair[1])
    counts = Counter(token for ids in extended.encode(texts) for token in ids[1:-1].tolist())
    parts = [(extended.id_of(token.left), extended.id_of(token.right)) for token in tokens]
    for size, tokenizer in ((0, base.tokenizer), (NEW_TOKENS // 2, half), (NEW_TOKENS, extended)):
        expected = sum(len(ids) - 2 for ids in tokenizer.encode(texts))
        assert gain.n_tokens(counts, parts, base.tokenizer.vocab_size, size) == expected


def merges_of(folder):
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    return [merge if isinstance(merge, list) else merge.split(" ") for merge in merges]
