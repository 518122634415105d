"""The data of a run: packed token stores, mixed by weight, and the order of their rows.

    sample number --order--> (store, epoch, shard, row) --packing--> segments --token store--> tokens

Every arrow is a function of the files and the options, so any process can rebuild any sample of any step.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.rows import Rows
from lit_gpt.rows.sample_order import OrderStart, RowAddresses, SampleOrder
from lit_gpt.rows.store_entry import DocumentShare, StoreEntry, parse_stores, weights_of
from lit_gpt.store.manifest import ChatFormat, DocumentEnds
from lit_gpt.store.token_store import TokenStore
from pretrain.data.row_reader import RowTable, by_shard
from pretrain.options import DataOptions

_OTHER_DATA = "the data is no longer what the run read: "


class TrainingData:
    """Packed stores and the order of their rows, which is the stored one without `shuffle`."""

    def __init__(
        self,
        options: DataOptions,
        stores: list[PackedStore],
        weights: list[float] | None,
        shuffle: bool = True,
        start: OrderStart | None = None,
    ) -> None:
        self.options = options
        self.stores = stores
        self.weights = weights
        self.order = SampleOrder(
            [packed.rows_per_shard for packed in stores],
            weights,
            seed=options.seed,
            shuffle_window=options.shuffle_window,
            shuffle=shuffle,
            names=[packed.name for packed in stores],
            start=start,
        )

    @classmethod
    def open(cls, options: DataOptions, start: OrderStart | None = None) -> "TrainingData":
        """Open every store and its packing, which is built if it is missing.

        Args:
            start: where a later stage of a run begins, with an entry for each of `train_data_dir`.

        Raises:
            InputError: a store or packing cannot be used, or stores of different tokenizers are mixed.
        """
        if not options.train_data_dir:
            raise InputError("train_data_dir is empty: give at least one token store")
        entries = parse_stores(options.train_data_dir)
        packing_dir = None if options.packing_dir is None else Path(options.packing_dir)
        stores = [
            PackedStore.open(
                TokenStore.open(entry.path), options.block_size, options.packing, packing_dir, entry.share
            )
            for entry in entries
        ]
        first = stores[0].store
        for other in (packed.store for packed in stores[1:]):
            if other.manifest.tokenizer != first.manifest.tokenizer:
                raise InputError(
                    f"{other.path} was tokenized with another tokenizer than {first.path}: "
                    "one run can only mix stores of one tokenizer"
                )
        _check_templates([packed.store for packed in stores])
        return cls(options, stores, weights_of(entries), start=start)

    @classmethod
    def reopen(
        cls,
        description: dict[str, Any],
        train_data_dir: Sequence[str] | None = None,
        packing_dir: str | None = None,
    ) -> "TrainingData":
        """Open the data that `describe` described.

        Args:
            description: of `describe`.
            train_data_dir: where the stores are now, if they have moved.
            packing_dir: where their packings are now.

        Raises:
            InputError: a store is not where it was, or is not what it was.
        """
        names = {field.name for field in dataclasses.fields(DataOptions)}
        known = {name: value for name, value in description["options"].items() if name in names}
        options = DataOptions(**known)
        if train_data_dir is not None:
            options = dataclasses.replace(options, train_data_dir=_moved(description, train_data_dir))
        if packing_dir is not None:
            options = dataclasses.replace(options, packing_dir=packing_dir)
        data = cls.open(options, _start_of(description))
        if changes := compare_data(description, data.describe()):
            raise InputError(_OTHER_DATA + "; ".join(changes))
        return data

    @property
    def vocab_size(self) -> int:
        """Highest token id of the stores' tokenizer + 1."""
        return self.stores[0].store.vocab_size

    @property
    def document_ends(self) -> DocumentEnds:
        """Of the documents of all stores."""
        return DocumentEnds.of(packed.store.manifest for packed in self.stores)

    @property
    def masked(self) -> bool:
        """Whether a store has tokens that are no targets."""
        return any(packed.store.masked for packed in self.stores)

    @property
    def chat(self) -> ChatFormat | None:
        """Of the stores that hold conversations."""
        return next((chat for packed in self.stores if (chat := packed.store.manifest.chat)), None)

    @property
    def pad_token(self) -> int:
        """The token in slots that no document fills: EOS."""
        return self.stores[0].store.eos_id or 0

    def describe(self) -> dict[str, Any]:
        """Everything that decides the samples, as JSON: enough to `reopen` and to compare.

        A store of which only a share is read has `share`. `first_sample`, and a store's `number` and
        `position`, are left out where they are those of a run without stages: 0, its index and 0.
        """
        names = [field.name for field in dataclasses.fields(DataOptions)]
        options = {name: getattr(self.options, name) for name in names}
        options |= {"cache_dir": None, "shuffle": True}  # only validation is in stored order
        weights: Sequence[float | None] = self.weights or [None] * len(self.stores)
        options["train_data_dir"] = [
            str(StoreEntry(packed.store.path.resolve(), packed.share, weight))
            for packed, weight in zip(self.stores, weights, strict=True)
        ]
        stores: list[dict[str, Any]] = [
            {
                "store": packed.store.fingerprint,
                "packing": packed.fingerprint,
                "rows": int(packed.rows_per_shard.sum()),
            }
            | ({} if packed.share is None else {"share": str(packed.share)})
            for packed in self.stores
        ]
        description: dict[str, Any] = {"options": options, "weights": self.weights, "stores": stores}
        first_sample, numbers, positions = self.order.start
        if first_sample:
            description["first_sample"] = first_sample
        for index, (store, number, position) in enumerate(zip(stores, numbers, positions, strict=True)):
            if number != index:
                store["number"] = number
            if position:
                store["position"] = position
        return description

    def rows(self, samples: np.ndarray) -> RowAddresses:
        """The rows of samples, integers (n,)."""
        return self.order.locate(np.asarray(samples, dtype=np.int64))

    def targets_per_row(self, addresses: RowAddresses) -> np.ndarray:
        """Targets of each row that count, int64 (n,)."""
        return self._of_rows(addresses, lambda packed, shard: packed.loss_targets(shard))

    def tokens_per_row(self, addresses: RowAddresses) -> np.ndarray:
        """Slots of each row that a document fills, int64 (n,): its targets, masked ones too."""
        return self._of_rows(addresses, lambda packed, shard: packed.rows(shard).targets_per_row)

    def _of_rows(
        self, addresses: RowAddresses, of_shard: Callable[[PackedStore, int], np.ndarray]
    ) -> np.ndarray:
        """What `of_shard` says of each row of a shard, for these rows, int64 (n,)."""
        values = np.empty(len(addresses.row), dtype=np.int64)
        for store, shard, where in by_shard(addresses.store, addresses.shard):
            values[where] = of_shard(self.stores[store], shard)[addresses.row[where]]
        return values

    def table(self, addresses: RowAddresses) -> RowTable:
        """The rows with their segments, in the order of `addresses`."""
        n_rows = len(addresses.row)
        checksums, place = np.empty(n_rows, dtype=np.uint64), np.empty(n_rows, dtype=np.int64)
        parts, n_taken = [], 0
        for store, shard, where in by_shard(addresses.store, addresses.shard):
            packed, rows = self.stores[store], addresses.row[where]
            checksums[where] = packed.checksums(shard)[rows]
            parts.append(packed.rows(shard).take(rows))
            place[where] = n_taken + np.arange(where.size)
            n_taken += where.size
        return RowTable(addresses, checksums, Rows.concatenate(parts).take(place))


def compare_data(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between two descriptions, in words; empty if both give the same samples."""
    changes = []
    for name in ("seed", "block_size", "shuffle_window", "packing"):
        if before["options"][name] != now["options"][name]:
            changes.append(f"{name} was {before['options'][name]} and is {now['options'][name]}")
    if len(before["stores"]) != len(now["stores"]):
        changes.append(f"there were {len(before['stores'])} stores and are {len(now['stores'])}")
    elif before["weights"] != now["weights"]:
        changes.append(f"weights were {before['weights']} and are {now['weights']}")
    first, first_now = before.get("first_sample", 0), now.get("first_sample", 0)
    if first != first_now:
        changes.append(f"the first sample was {first} and is {first_now}")
    for index, (old, new) in enumerate(zip(before["stores"], now["stores"], strict=False)):
        path = now["options"]["train_data_dir"][index]
        for name, plain in (("share", "all"), ("number", index), ("position", 0)):
            if old.get(name, plain) != new.get(name, plain):
                was, is_now = old.get(name, plain), new.get(name, plain)
                changes.append(f"the {name} of {path} was {was} and is {is_now}")
        if old["store"] != new["store"]:
            changes.append(f"store {path} has fingerprint {new['store'][:12]} instead of {old['store'][:12]}")
        elif old["packing"] != new["packing"] and not changes:
            changes.append(
                f"the packing of {path} has fingerprint {new['packing'][:12]}, not {old['packing'][:12]}"
            )
    return changes


def _check_templates(stores: Sequence[TokenStore]) -> None:
    """Conversations of one run have one format: the model is exported with it. Raises InputError."""
    written = [store for store in stores if store.manifest.chat]
    for other in written[1:]:
        if other.manifest.chat != written[0].manifest.chat:
            raise InputError(
                f"{other.path} was written with another chat template than {written[0].path}: tokenize both "
                "with the same --template"
            )


def _moved(description: dict[str, Any], train_data_dir: Sequence[str]) -> list[str]:
    """Entries of other folders, each with its store's share and weight unless it names others."""
    stores = description["stores"]
    entries = parse_stores(train_data_dir)
    if len(entries) != len(stores):
        raise InputError(f"{_OTHER_DATA}there were {len(stores)} stores and are {len(entries)}")
    weights = description["weights"] or [None] * len(stores)
    shares = [DocumentShare.parse(store["share"]) if "share" in store else None for store in stores]
    return [
        str(StoreEntry(entry.path, entry.share or share, entry.weight or weight))
        for entry, share, weight in zip(entries, shares, weights, strict=True)
    ]


def _start_of(description: dict[str, Any]) -> OrderStart:
    """What `describe` said of it, or left out because it is that of a run without stages."""
    stores = description["stores"]
    return OrderStart(
        description.get("first_sample", 0),
        tuple(store.get("number", index) for index, store in enumerate(stores)),
        tuple(store.get("position", 0) for store in stores),
    )
