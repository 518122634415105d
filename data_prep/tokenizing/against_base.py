"""Ways to a vocabulary for new text: a base continued, or a fresh tokenizer's tokens appended to it."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from data_prep.tokenizing import gain
from data_prep.tokenizing.continued_bpe import Base, NewToken, merges_of
from data_prep.tokenizing.extend import write_extended
from data_prep.tokenizing.reachable import find_text
from lit_gpt.errors import InputError
from lit_gpt.store.extension import NAME, Extension
from lit_gpt.store.tokenizer import Tokenizer


def load_others(folders: list[Path], base: Base) -> tuple[list[Extension | Base | None], list[str]]:
    """What each tokenizer is to the base: its extension, one whose tokens can be appended to it, or neither.

    Also returned is why some are neither.

    Raises:
        InputError: one extends another tokenizer.
    """
    others: list[Extension | Base | None] = []
    said = []
    for folder in folders:
        if (folder / NAME).is_file():
            extension = Extension.read(folder)
            if extension.base != base.tokenizer.fingerprint:
                raise InputError(f"{folder} extends another tokenizer than --base {base.tokenizer.folder}")
            others.append(extension)
            continue
        try:
            fresh, reason = Base(folder), "only one of the two is byte-level"  # and no token is spelled alike
            others.append(fresh if fresh.byte_level == base.byte_level else None)
        except InputError as error:
            others.append(None)
            reason = str(error)
        if others[-1] is None:
            said.append(f"no row for the tokens of {folder} appended to {base.tokenizer.folder}: {reason}")
    return others, said


def append(base: Base, fresh: Base, n_tokens: int, folder: Path) -> tuple[Tokenizer, list[str]]:
    """Write the base with up to `n_tokens` of a fresh tokenizer's tokens, as published scripts do.

    Returns it and the contents of these tokens.
    """
    tokens = appended_tokens(base, fresh)[:n_tokens]
    write_extended(base, tokens, [], folder)
    return Tokenizer.load(folder), [token.content for token in tokens]


def appended_tokens(base: Base, fresh: Base) -> list[NewToken]:
    """The tokens of `fresh` that `base` lacks and their merges, in the order of their ids."""
    ranks = {merge: rank for rank, merge in reversed(list(enumerate(merges_of(fresh.definition))))}
    known, tokens = set(base.taken), []
    for _, content in sorted(fresh.contents.items()):
        parts = [part.replace(fresh.space, base.space) for part in _last_merge(content, ranks)]
        if len(parts) == 2 and known.issuperset(parts) and "".join(parts) not in known:
            tokens.append(NewToken(parts[0], parts[1], old_ids=[]))
            known.add("".join(parts))
    return tokens


def _last_merge(content: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The parts that a token's own string is merged of last, by BPE."""
    parts = list(content)
    while len(parts) > 2:
        pairs = [(ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts))]
        rank, place = min(pairs)
        if rank == len(ranks):
            break
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    return parts


def curve(base: Base, tokenizer: Tokenizer, n_new: int, texts: Sequence[str]) -> list[gain.Point]:
    """Tokens per word over the number of new tokens, of an extension or what `append` wrote."""
    encoded = (tokenizer.encode([text])[0][1:-1].tolist() for text in texts)
    counts = Counter(token for ids in encoded for token in ids)
    n_words = sum(len(text.split()) for text in texts)
    return gain.curve(counts, gain.parts_of_new(tokenizer, n_new), base.tokenizer.vocab_size, n_words)


def n_unreachable(tokenizer: Tokenizer, contents: Sequence[str], byte_level: bool) -> int:
    """Number of tokens that no text is encoded to."""
    return sum(find_text(content, tokenizer, byte_level) is None for content in contents)
