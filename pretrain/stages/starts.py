"""Where the sequences of stores begin, stage by stage, and which documents are read again."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_gpt.errors import InputError
from lit_gpt.rows.sample_order import OrderStart
from lit_gpt.rows.store_entry import DocumentShare, StoreEntry
from lit_gpt.store.token_store import TokenStore
from pretrain.options import DataOptions


@dataclass(frozen=True)
class StoreRows:
    """The rows that a stage reads of a store; equal ones are the same packing."""

    name: str = field(compare=False)
    store: str
    """Fingerprint."""
    share: DocumentShare | None
    block_size: int
    packing: str

    @classmethod
    def of(cls, store: TokenStore, share: DocumentShare | None, options: DataOptions) -> "StoreRows":
        name = str(StoreEntry(store.path, share))
        return cls(name, store.fingerprint, share, options.block_size, options.packing)

    def has_documents_of(self, other: "StoreRows") -> bool:
        """Whether both are of one store and their shares overlap."""
        (begin, end), (other_begin, other_end) = (
            rows.share.bounds if rows.share else (0, 2**64) for rows in (self, other)
        )
        return self.store == other.store and begin < other_end and other_begin < end


class Starts:
    """Goes through the stages in their order.

    A store (or a share of one) is numbered by its first appearance, and that number is the key of its
    permutations. The rows of a packing that earlier stages were dealt are not dealt again.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self._dealt: dict[StoreRows, int] = {}
        self._stages: dict[StoreRows, str] = {}
        self._first_sample = 0

    def begin(self, stores: Sequence[StoreRows]) -> OrderStart:
        """Where the next stage begins.

        Raises:
            InputError: it names a store twice.
        """
        if twice := next((rows for number, rows in enumerate(stores) if rows in stores[:number]), None):
            raise InputError(f"{twice.name} is named twice: name it once, with both weights")
        numbers = [
            self._numbers.setdefault((rows.store, str(rows.share)), len(self._numbers)) for rows in stores
        ]
        positions = [self._dealt.get(rows, 0) for rows in stores]
        return OrderStart(self._first_sample, tuple(numbers), tuple(positions))

    def repeats(self, stores: Sequence[StoreRows]) -> list[str]:
        """Of the stage that begins: warnings about documents that it reads twice, or an earlier one read."""
        overlaps = [
            f"documents repeat: {one.name} and {other.name} overlap"
            for one, other in itertools.combinations(stores, 2)
            if one.has_documents_of(other)
        ]
        return overlaps + [
            f"documents repeat: {rows.name} begins anew in rows of {rows.block_size}, but stage {stage} "
            f"read {earlier.name} in rows of {earlier.block_size}; give the stages shares that do not "
            "overlap, DIR@0-40 and DIR@40-100"
            for rows in stores
            if rows not in self._dealt
            for earlier, stage in self._stages.items()
            if rows.has_documents_of(earlier)
        ]

    def end(self, stage: str, stores: Sequence[StoreRows], dealt: Sequence[int], samples: int) -> None:
        """Note what a stage reads.

        Args:
            dealt: Rows of each store, with those of the stages before.
            samples: Of the stage.
        """
        self._dealt |= dict(zip(stores, dealt, strict=True))
        self._stages |= dict.fromkeys(stores, stage)
        self._first_sample += samples
