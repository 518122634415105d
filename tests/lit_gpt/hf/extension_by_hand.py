"""An extended tokenizer without the command that makes them: whole words put together merge by merge."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer


def extend(base: Path, folder: Path, words: Sequence[str], special_tokens: Sequence[str] = ()) -> Extension:
    """Extend a byte-level BPE by a token for each of the words, and for what they are merged from."""
    shutil.copytree(base, folder)
    tokenizer = Tokenizer.load(base)
    definition = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    first, expansions = tokenizer.vocab_size, {}
    for word in words:
        ids = tokenizer.encode([word])[0][1:-1].tolist()
        left = tokenizer.token(ids[0])
        for n_ids, token in enumerate(ids[1:], start=2):
            right = tokenizer.token(token)
            if left + right not in vocab:
                vocab[left + right] = first + len(expansions)
                expansions[vocab[left + right]] = ids[:n_ids]
                merges.append([left, right])
            left += right
    special = {token: first + len(expansions) + n for n, token in enumerate(special_tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    definition["added_tokens"] += [{"id": n, "content": token, **flags} for token, n in special.items()]
    vocab.update(special)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    extension = Extension(tokenizer.fingerprint, first, expansions, special)
    extension.write(folder)
    return extension
