"""Masked stores for tests: conversations in which only the answers are targets."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lit_gpt.store import masking
from lit_gpt.store.manifest import ChatFormat
from lit_gpt.store.store_writer import TokenStoreWriter
from lit_gpt.store.tokenizer import Tokenizer
from tests.german import german_texts

Conversation = Sequence[tuple[str, bool]]
"""Pieces of text, each with whether its tokens are targets."""
CHAT = ChatFormat("{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}", 2)


def masked_store(
    path: Path,
    tokenizer_dir: Path,
    conversations: Iterable[Conversation],
    chat: ChatFormat | None = CHAT,
    max_shard_tokens: int = 4000,
) -> Path:
    """Write a store of the documents BOS, pieces, EOS: BOS is no target, EOS is as the last piece."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    writer = TokenStoreWriter(path, tokenizer, max_shard_tokens, masked=True)
    for number, conversation in enumerate(conversations):
        pieces = [(tokenizer.encode([text])[0][1:-1], target) for text, target in conversation]
        pieces = [([tokenizer.bos_id], False), *pieces, ([tokenizer.eos_id], conversation[-1][1])]
        raw = np.concatenate([masking.mask(ids, np.full(len(ids), target)) for ids, target in pieces])
        writer.add(f"chat/{number:04d}", "chat.jsonl", number + 1, raw)
    writer.finish({}, chat)
    return path


def conversations(count: int, seed: int = 9, turns: int = 2) -> Iterator[list[tuple[str, bool]]]:
    """One turn or up to `turns`, questions and answers of uneven length, few hundred characters together."""
    rng = random.Random(seed)
    words = itertools.chain.from_iterable(text.split() for text in german_texts(count, seed))
    for _ in range(count):
        lengths = [rng.randint(1, 5) for _ in range(2 * rng.randint(1, turns))]
        yield [
            (" ".join(itertools.islice(words, length)) + "\n", place % 2 == 1)
            for place, length in enumerate(lengths)
        ]
