"""Extend a BPE tokenizer by tokens of a new language, so that every old id keeps its meaning.

Written are a tokenizer's folder and `extension.json`, which says of each new token which old ids it stands
for. That this holds is checked on held-out documents before the folder gets its name.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from data_prep.reading.documents import TEXT_FIELDS, sample_documents
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import Rejects, losses_in_short
from data_prep.tokenizing import gain, sentencepiece_model
from data_prep.tokenizing.continued_bpe import Base, NewToken, count_words, learn, without
from data_prep.tokenizing.held_out import HeldOut
from data_prep.tokenizing.reachable import find_text
from data_prep.tokenizing.special_tokens import check_special_tokens, new_special_tokens
from lit_gpt.cli import InputError, progress
from lit_gpt.files import new_folder, write_atomically
from lit_gpt.option_types import NonNegativeInt, PositiveFloat, Range
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer, files_in, for_transformers, prefix_space


@dataclass
class Options:
    """Extend a BPE tokenizer by tokens learned from text of a new language. No old id changes."""

    tokenizer: Path
    """Folder of the tokenizer to extend."""
    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."""
    output: Path
    """Folder for the extended tokenizer, extension.json and gain.png."""
    new_tokens: NonNegativeInt
    """Number of tokens to learn; 0 to add special tokens only."""
    special_tokens: list[str] = field(default_factory=list)
    """Special tokens, for example for chats; those that the tokenizer has keep their ids."""
    sample_mb: PositiveFloat = 500.0
    """Text to learn from, in 10^6 bytes: the beginning of each file, in proportion to its size."""
    held_out: Annotated[float, Range(above=0, below=1)] = 0.02
    """Share of these documents, by their ids' hash, that measures the gain and is not learned from."""
    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""
    max_bad_lines: NonNegativeInt = 1000
    """Stop if there are more unusable lines."""


def extend_tokenizer(options: Options) -> None:
    """Count words, learn, write the folder, check it on the held-out documents, print the gain.

    Raises:
        InputError: the base cannot be continued, the text gives too few tokens, or the result is not exact.
    """
    base = Base(options.tokenizer)
    rejects = Rejects(options.max_bad_lines)
    files = find_files(options.input)
    look_into(files, options.text_fields, (), max_bad_lines=options.max_bad_lines)
    documents = sample_documents(files, options.sample_mb * 1e6, rejects, options.text_fields)
    with new_folder(options.output) as folder:
        only_special = write_extended(base, [], options.special_tokens, folder)  # mistakes before learning
        check_special_tokens(base, Tokenizer.load(folder), only_special)
        if not options.new_tokens and not only_special.special_tokens:
            raise InputError("--new_tokens 0 adds nothing; give new --special_tokens, or tokens to learn")
        held = HeldOut(options.held_out)
        words, forgotten = count_words(held.take_from(documents), base)
        held_out = held.texts
        if not any(text.split() for text in held_out):
            raise InputError("no document with words is held out; give more text or a larger --held_out")
        extension = _choose_tokens(words, base, options, folder)
        extended = Tokenizer.load(folder)
        check_special_tokens(base, extended, extension)
        counts = check_exact(base.tokenizer, extended, extension, held_out)
        parts = gain.parts_of_new(extended, options.new_tokens)
        curve = gain.curve(counts, parts, extension.first_new_id, sum(len(text.split()) for text in held_out))
        gain.plot({"continued": curve}, folder / "gain.png")
        notes = [*_write_model(base, folder, extension, held_out), *_notes(base, extension, options)]
        notes += _left_out(forgotten, held.n_dropped)
    print(f"{options.output}: {options.new_tokens:,} new tokens; on {len(held_out):,} held-out documents:")
    print(gain.table(curve))
    for line in [*notes, *(f"skipped: {count:,} {reason}" for reason, count in rejects.counts.items())]:
        print(line)
    for line in losses_in_short(rejects.losses()):
        print(line)


def _choose_tokens(words: Counter[str], base: Base, options: Options, folder: Path) -> Extension:
    """Learn tokens and write the folder with as many as were asked for, of which each occurs in some text."""
    wanted = options.new_tokens
    if not wanted:
        return write_extended(base, [], options.special_tokens, folder)
    n_merges, dropped = wanted + wanted // 8 + 64, set[str]()
    learned, all_learned = learn(words, n_merges, base)
    while True:
        usable = without(learned, dropped)
        if len(usable) >= wanted:
            tokens = usable[:wanted]
            extension = write_extended(base, tokens, options.special_tokens, folder)
            tokenizer = Tokenizer.load(folder)
            unreachable = {
                token.content
                for token in progress(tokens, description="check", unit=" tokens")
                if find_text(token.content, tokenizer, base.byte_level) is None
            }
            if not unreachable:
                return extension
            dropped |= unreachable
        elif all_learned:
            raise InputError(
                f"the text gives {len(usable):,} new tokens, --new_tokens is {wanted:,}; give more text"
            )
        else:
            n_merges *= 2
            learned, all_learned = learn(words, n_merges, base)


def write_extended(base: Base, tokens: list[NewToken], special_tokens: list[str], folder: Path) -> Extension:
    """Write the tokenizer's files and extension.json.

    Raises:
        InputError: a special token is an ordinary token of the base, or a new one.
    """
    definition, config = json.loads(json.dumps((base.definition, base.config)))
    model, added = definition["model"], definition["added_tokens"] or []
    # The library renumbers added tokens when the vocabulary grows, unless they are part of it.
    for token in added:
        model["vocab"].setdefault(token["content"], base.tokenizer.id_of(token["content"]))
    first = base.tokenizer.vocab_size
    model["vocab"] |= {token.content: first + number for number, token in enumerate(tokens)}
    as_lists = not model["merges"] or isinstance(model["merges"][0], list)
    model["merges"] += [[one.left, one.right] if as_lists else f"{one.left} {one.right}" for one in tokens]
    new_special = new_special_tokens(base, special_tokens, {*model["vocab"]})
    extension = Extension(
        base.tokenizer.fingerprint,
        first,
        {first + number: token.old_ids for number, token in enumerate(tokens)},
        {name: first + len(tokens) + number for number, name in enumerate(new_special)},
    )
    model["vocab"] |= extension.special_tokens
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    definition["added_tokens"] = [
        *added,
        *({"id": token, "content": name, **flags} for name, token in extension.special_tokens.items()),
    ]
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {
            str(token): {"content": name, **flags} for name, token in extension.special_tokens.items()
        }
    _write_files(base, definition, config, folder)
    extension.write(folder)
    return extension


def _write_files(base: Base, definition: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    for path in files_in(base.tokenizer.folder):
        if path.name != sentencepiece_model.NAME:
            shutil.copyfile(path, folder / path.name)
    pad_token = base.tokenizer.token(base.tokenizer.pad_id)
    config = for_transformers(config, pad_token=pad_token, **prefix_space(definition))
    write_atomically(
        folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=1) + "\n"
    )
    write_atomically(folder / "tokenizer.json", json.dumps(definition, ensure_ascii=False))


def check_exact(base: Tokenizer, extended: Tokenizer, extension: Extension, texts: list[str]) -> Counter[int]:
    """Check that each new token stands for its old ids in every text, and count the ids of the extended one.

    Raises:
        InputError: it does not.
    """
    counts: Counter[int] = Counter()
    for text in progress(texts, description="held out", unit=" documents"):
        old, new = base.encode([text])[0][1:-1], extended.encode([text])[0][1:-1].tolist()
        if extension.to_base(new) != old.tolist() or extended.decode(new) != base.decode(old):
            hint = "its merges cannot be continued; train one by train_tokenizer.py"
            raise InputError(f"{base.folder} encodes {text[:40]!r} differently when extended: {hint}")
        counts.update(new)
    return counts


def _write_model(base: Base, folder: Path, extension: Extension, texts: list[str]) -> Iterator[str]:
    """Write tokenizer.model where SentencePiece agrees with us as often as on the base; say whether."""
    path = base.tokenizer.folder / sentencepiece_model.NAME
    if not path.is_file():
        return
    old, extended = path.read_bytes(), Tokenizer.load(folder)
    if not sentencepiece_model.is_model(old):
        yield f"tokenizer.model: left out; {path} is no SentencePiece model"
        return
    new = sentencepiece_model.extended_model(old, extended, base.added, list(extension.special_tokens))
    before = sentencepiece_model.agreement(old, base.tokenizer, texts)
    after = -1 if new is None else sentencepiece_model.agreement(new, extended, texts)
    said = (
        f"SentencePiece agrees on {max(after, 0):,} of {len(texts):,} documents, on the base's ids {before:,}"
    )
    if new is not None and after >= max(before, 1):
        (folder / path.name).write_bytes(new)
        yield f"tokenizer.model: written; {said}"
    else:
        yield f"tokenizer.model: left out; {said}"


def _notes(base: Base, extension: Extension, options: Options) -> Iterator[str]:
    """What the user should know about the new ids."""
    first, special = extension.first_new_id, extension.special_tokens
    last = first + len(extension.new_tokens) - 1
    if extension.new_tokens:
        yield f"new ids: {first:,} to {last:,}; some text is encoded to each"
    for name in options.special_tokens:
        said = f"{special[name]} (new)" if name in special else f"{base.tokenizer.id_of(name)} (as before)"
        yield f"special token: {name} = {said}"
    if base.tokenizer.vocab_size <= 1 << 16 < extension.vocab_size:
        yield "stores: more than 65,536 ids take 4 bytes a token instead of 2"


def _left_out(forgotten: int, n_dropped: int) -> Iterator[str]:
    """What was left out to bound the memory."""
    if forgotten:
        yield f"words: too many to count all; words of up to {forgotten:,} occurrences so far were forgotten"
    if n_dropped:
        yield f"held out: {n_dropped:,} further documents, too many: neither learned from nor measured"
