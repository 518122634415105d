"""An entry of `train_data_dir`, `DIR[@LO-HI][:WEIGHT]`: a store, the share of its documents, its weight."""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from lit_gpt.errors import InputError

SHARE_FORM = "LO-HI in percent, with 0 <= LO < HI <= 100"
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,12})?)-([0-9]{1,3}(?:\.[0-9]{1,12})?)")


class DocumentShare(NamedTuple):
    """The documents whose id's hash, as a fraction of 2^64, lies in [low, high) percent.

    It depends on the id alone: shares that do not overlap have no document in common, whatever the store.
    """

    low: Decimal
    high: Decimal

    @classmethod
    def parse(cls, text: str) -> "DocumentShare":
        """Read "LO-HI". Raises ValueError where it is no share."""
        match = _SHARE.fullmatch(text)
        share = match and cls(*(Decimal(number).normalize() for number in match.groups()))
        if not share or not 0 <= share.low < share.high <= 100:
            raise ValueError(f"{text!r} is not {SHARE_FORM}")
        return share

    @property
    def bounds(self) -> tuple[int, int]:
        """The hashes [begin, end), exact: equal limits of two shares are one bound."""
        begin, end = (math.ceil(Fraction(percent) * 2**64 / 100) for percent in self)
        return begin, end

    def __str__(self) -> str:
        return f"{self.low:f}-{self.high:f}"


class StoreEntry(NamedTuple):
    """A token store to read, with its share of documents and its weight, where they are given."""

    path: Path
    share: DocumentShare | None = None
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> "StoreEntry":
        """Read "DIR[@LO-HI][:WEIGHT]"; a folder that has a colon or an @ in its name is taken as it is.

        Raises:
            InputError: a share or a weight is none.
        """
        named, weight = _split(text, ":")
        if weight is not None and "@" in weight:  # the colon is in the folder's name
            named, weight = text, None
        path, share = _split(named, "@")
        entry = cls(Path(path))
        try:
            if share is not None:
                entry = entry._replace(share=DocumentShare.parse(share))
        except ValueError as error:
            raise InputError(f"train_data_dir {text}: {error}, and {named} is no folder") from None
        try:
            return entry if weight is None else entry._replace(weight=float(weight))
        except ValueError:
            raise InputError(
                f"train_data_dir {text}: {weight!r} is not a weight and {text} is no folder"
            ) from None

    @property
    def fraction(self) -> float:
        """Of the store's documents, about."""
        return 1.0 if self.share is None else float(self.share.high - self.share.low) / 100

    def __str__(self) -> str:
        share = "" if self.share is None else f"@{self.share}"
        return f"{self.path}{share}" + ("" if self.weight is None else f":{self.weight}")


def parse_stores(train_data_dir: Sequence[str]) -> list[StoreEntry]:
    """Read all entries. Raises InputError as `StoreEntry.parse`, and where only some have a weight."""
    entries = [StoreEntry.parse(text) for text in train_data_dir]
    if len({entry.weight is None for entry in entries}) > 1:
        raise InputError("train_data_dir: give every store a weight or none of them")
    return entries


def weights_of(entries: Sequence[StoreEntry]) -> list[float] | None:
    """Of all stores, or None where none has a weight."""
    return [entry.weight for entry in entries if entry.weight is not None] or None


def _split(text: str, sign: str) -> tuple[str, str | None]:
    """What is before and after the last `sign`; an existing folder is not split."""
    before, found, after = text.rpartition(sign)
    return (before, after) if found and not Path(text).is_dir() else (text, None)
