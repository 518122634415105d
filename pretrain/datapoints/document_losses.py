"""The documents with the highest and lowest losses in a datapoint log, and those seen again."""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lit_gpt.store.token_store import TokenStore
from pretrain.datapoints.losses import Found, Steps
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.segments import LoggedSegments, scan

SHORTEST = 16
"""Targets of a document that is ranked: the mean of fewer says little."""
MAX_BYTES = 2_000_000_000
"""Of the sums of documents. Where they take more, the log is read several times, for some shards each."""

_SUMS = np.dtype(
    [
        ("loss", np.float32),  # times targets
        ("targets", np.uint32),
        ("times", np.uint16),
        ("first_step", np.int32),
        ("last_step", np.int32),
        ("first_loss", np.float16),
        ("last_loss", np.float16),
    ]
)
_Shard = tuple[str, int]  # fingerprint of the store, number in it


class DocumentLoss(NamedTuple):
    """A document in the steps in view.

    If it was cut, `times`, first and last are of its first segment; `loss` is the mean over all targets fed.
    """

    rank: float
    """By what it is ranked: the loss, or how far it fell."""
    store: TokenStore
    shard: int
    document: int
    loss: float
    targets: int
    times: int
    first_step: int
    last_step: int
    first_loss: float
    last_loss: float


@dataclass
class Ranking(Found):
    """What a scan has found out about documents."""

    top: list[DocumentLoss] = field(default_factory=list)
    """Those that rank first."""
    by_times: dict[int, np.ndarray] = field(default_factory=dict)
    """By how often they were seen: how many documents, and the sums of their first and last losses."""


def rank_documents(
    replay: Replay, steps: Steps, *, top: int, repeats: bool = False, lowest: bool = False
) -> Ranking:
    """The `top` documents by mean loss or, of those seen again (`repeats`), by how far it fell.

    Memory: 22 bytes a document of the shards that one pass over the log looks at, at most MAX_BYTES unless
    one shard takes more.
    """
    stores = {
        packed.store.fingerprint: packed.store
        for period in replay.log.periods
        if period.first_step <= steps.last
        for packed in replay.data(period).stores
    }
    ranking, sign = Ranking(steps), -1 if lowest else 1
    for shards in _passes(stores):
        numbers = [shard for _, shard in shards]
        sums: dict[_Shard, np.ndarray] = {}
        for logged in scan(replay, *steps, shards=(min(numbers), max(numbers)), bar=True):
            _add(ranking, sums, shards, logged)
        for (fingerprint, shard), of_documents in sums.items():
            _count_repeats(ranking, of_documents)
            rank, chosen = _first(of_documents, top, repeats, sign)
            found = _describe(stores[fingerprint], shard, of_documents, rank, chosen)
            ranking.top = heapq.nlargest(top, [*ranking.top, *found], key=lambda one: sign * one.rank)
    return ranking


def _passes(stores: Mapping[str, TokenStore]) -> Iterator[set[_Shard]]:
    """All shards in groups whose sums take at most MAX_BYTES, those of one number together."""
    group: set[_Shard] = set()
    size = 0
    for number in range(max(store.n_shards for store in stores.values())):
        having = {name: store for name, store in stores.items() if number < store.n_shards}
        n_documents = sum(store.manifest.shards[number].n_documents for store in having.values())
        if group and size + n_documents * _SUMS.itemsize > MAX_BYTES:
            yield group
            group, size = set(), 0
        group |= {(name, number) for name in having}
        size += n_documents * _SUMS.itemsize
    yield group


def _add(
    ranking: Ranking, sums: dict[_Shard, np.ndarray], shards: set[_Shard], logged: LoggedSegments
) -> None:
    """Add segments to the sums of their documents, if they are of these shards."""
    step_of_segment, rows = logged["step"], logged.rows
    for number, shard, of_shard in logged.by_shard():
        store = logged.data.stores[number].store
        if (store.fingerprint, shard) not in shards:
            continue
        where = ranking.with_loss(logged, of_shard)
        if (store.fingerprint, shard) not in sums:
            sums[store.fingerprint, shard] = np.zeros(store.manifest.shards[shard].n_documents, _SUMS)
            sums[store.fingerprint, shard]["first_step"] = np.iinfo(np.int32).max
        of_documents = sums[store.fingerprint, shard]
        targets = logged.targets[where].astype(np.uint32)
        np.add.at(of_documents["loss"], rows.document[where], logged.loss[where] * targets)
        np.add.at(of_documents["targets"], rows.document[where], targets)
        where = where[rows.start[where] == 0]  # every pass over the store has it once
        np.add.at(of_documents["times"], rows.document[where], np.uint16(1))
        _note_first_and_last(of_documents, rows.document[where], step_of_segment[where], logged.loss[where])


def _note_first_and_last(
    of_documents: np.ndarray, document: np.ndarray, step: np.ndarray, loss: np.ndarray
) -> None:
    """Note the losses (n,) of documents (n,) in steps (n,) that come before or after all others so far."""
    order = np.lexsort([step, document])
    document, step, loss = document[order], step[order], loss[order]
    changes = np.flatnonzero(np.diff(document, prepend=-1, append=-1))
    for which, at, is_newer in (("first", changes[:-1], np.less), ("last", changes[1:] - 1, np.greater)):
        at = at[is_newer(step[at], of_documents[f"{which}_step"][document[at]])]
        of_documents[f"{which}_step"][document[at]] = step[at]
        of_documents[f"{which}_loss"][document[at]] = loss[at]


def _count_repeats(ranking: Ranking, of_documents: np.ndarray) -> None:
    seen = of_documents[of_documents["times"] > 0]
    for times in np.unique(seen["times"]).tolist():
        alike = seen[seen["times"] == times]
        losses = [alike[name].sum(dtype=np.float64) for name in ("first_loss", "last_loss")]
        counted = ranking.by_times.setdefault(times, np.zeros(3))
        counted += [alike.size, *losses]


def _first(of_documents: np.ndarray, top: int, repeats: bool, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of the documents that come first in a shard, and their numbers."""
    ranked = of_documents["targets"] >= SHORTEST
    if repeats:
        ranked &= of_documents["times"] > 1
    [documents] = np.nonzero(ranked)
    chosen = of_documents[documents]
    if repeats:
        rank = chosen["first_loss"].astype(np.float64) - chosen["last_loss"]
    else:
        rank = chosen["loss"].astype(np.float64) / chosen["targets"]
    order = np.argsort(-sign * rank, kind="stable")[:top]
    return rank[order], documents[order]


def _describe(
    store: TokenStore, shard: int, of_documents: np.ndarray, ranks: np.ndarray, documents: np.ndarray
) -> Iterator[DocumentLoss]:
    lines = of_documents[documents].tolist()
    for rank, document, line in zip(ranks.tolist(), documents.tolist(), lines, strict=True):
        loss, targets, *rest = line
        yield DocumentLoss(rank, store, shard, document, loss / targets, targets, *rest)
