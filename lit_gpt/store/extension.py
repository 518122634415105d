"""What an extended tokenizer adds to its base: `extension.json` in the tokenizer's folder.

    {"format_version": 1, "base": FINGERPRINT, "first_new_id": 32000,
     "new_tokens": {"32000": [310, 2714], ...}, "special_tokens": {"<|im_start|>": 40960, ...}}

Ids below `first_new_id` mean what they mean in the base. The new tokens follow without gaps, then the new
special tokens. Each new token is a row of old ids, which is how the base encodes the same text.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_gpt.errors import InputError
from lit_gpt.files import read_json, write_atomically
from lit_gpt.store.tokenizer import Tokenizer

NAME = "extension.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Extension:
    """The new ids of an extended tokenizer."""

    base: str
    """Fingerprint of the base tokenizer, as token stores have it."""
    first_new_id: int
    """The base's vocabulary size."""
    new_tokens: dict[int, list[int]]
    """New id -> the base's ids for the same text, ordered by id."""
    special_tokens: dict[str, int]
    """The new special tokens, ordered by id; those that the base has are not among them."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, old and new."""
        return self.first_new_id + len(self.new_tokens) + len(self.special_tokens)

    def to_base(self, ids: Iterable[int]) -> list[int]:
        """Replace each new token by its old ids: the base's encoding of the same text."""
        return [old for token in ids for old in self.new_tokens.get(token, (token,))]

    def is_of(self, base: Tokenizer, extended: Tokenizer) -> bool:
        """Whether `extended` is `base` with these tokens: each new one is spelled as its old ids are."""
        rows = [[token] for token in range(self.first_new_id)] + [*self.new_tokens.values()]
        return (
            (base.vocab_size, extended.vocab_size) == (self.first_new_id, self.vocab_size)
            and all(
                (extended.token(token) or "") == "".join(base.token(old) or "" for old in row)
                for token, row in enumerate(rows)
            )
            and all(extended.id_of(name) == token for name, token in self.special_tokens.items())
        )

    def write(self, folder: Path) -> None:
        """Write `extension.json` into the tokenizer's folder."""
        write_atomically(folder / NAME, json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "Extension":
        """Read and check `extension.json`.

        Raises:
            InputError: it is missing, damaged, or of a later format.
        """
        path = folder / NAME
        values = read_json(path, "give a folder that data_prep/extend_tokenizer.py wrote")
        if values.get("format_version") != FORMAT_VERSION:
            raise InputError(
                f"{path} has format_version {values.get('format_version')}, not {FORMAT_VERSION}"
            )
        try:
            new_tokens = {int(token): list(old) for token, old in values["new_tokens"].items()}
            extension = cls(
                str(values["base"]), values["first_new_id"], new_tokens, dict(values["special_tokens"])
            )
            good = extension._has_its_ids()
        except (KeyError, TypeError, ValueError, AttributeError):
            good = False
        if not good:
            raise InputError(f"{path} is damaged; extend the tokenizer again")
        return extension

    def _has_its_ids(self) -> bool:
        """Whether the new ids have no gaps and stand for old ids."""
        new_ids = [*self.new_tokens, *self.special_tokens.values()]
        olds = [old for row in self.new_tokens.values() for old in row]
        return (
            new_ids == list(range(self.first_new_id, self.vocab_size))
            and all(len(row) > 1 for row in self.new_tokens.values())
            and all(type(old) is int and 0 <= old < self.first_new_id for old in olds)
        )
