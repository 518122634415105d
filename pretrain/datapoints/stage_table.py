"""What each stage of a run was fed from each store, counted from the log."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lit_gpt.rows.packed_store import PackedStore
from pretrain.datapoints.replay import Replay
from pretrain.datapoints.reports import aligned, read_segments
from pretrain.datapoints.segments import LoggedSegments

COLUMNS = ("stage", "steps", "rows", "targets", "epochs", "in total", "seen before")


@dataclass
class StoreOfStage:
    """What one stage was fed from one packing of a store."""

    stage: str
    store: str
    """Its folder, and the share of its documents that is read."""
    rows_per_epoch: int
    first_step: int
    """Of the stage, in the log."""
    last_step: int
    rows: int = 0
    targets: int = 0
    rows_until_here: int = 0
    """Of this packing, in this stage and those before."""
    documents: int = 0
    """Of which any part was fed, each counted once."""
    seen_before: int = 0
    """Of these: documents that an earlier stage was fed too, in whatever packing of the store."""


def count_stages(replay: Replay) -> list[StoreOfStage]:
    """Go through the log once. Memory: 2 bytes a document of the shards fed."""
    rows_fed: Counter[str] = Counter()
    seen: dict[tuple[str, int], np.ndarray] = {}
    by_stage = itertools.groupby(
        read_segments(replay), key=lambda logged: (logged.period.name, logged.period.steps_before)
    )
    return [line for _, logged in by_stage for line in _count_stage(logged, rows_fed, seen)]


def _count_stage(
    segments: Iterable[LoggedSegments], rows_fed: Counter[str], seen: dict[tuple[str, int], np.ndarray]
) -> list[StoreOfStage]:
    """Count one stage.

    Args:
        rows_fed: rows of each packing that the stages before were fed; continued.
        seen: bool (n_documents,) of each store and shard: those they were fed; continued.
    """
    lines: dict[str, StoreOfStage] = {}
    fed: dict[tuple[str, int], tuple[PackedStore, np.ndarray]] = {}
    first, last = np.iinfo(np.int64).max, 0
    for logged in segments:
        step, row = logged["step"], logged.rows.row_of_segment
        first, last = min(first, int(step.min())), max(last, int(step.max()))
        for number, shard, where in logged.by_shard():
            packed = logged.data.stores[number]
            line = lines.setdefault(packed.fingerprint, _new_line(logged.period.name, packed))
            line.rows += np.unique(row[where]).size
            line.targets += int(logged.targets[where].sum())
            n_documents = len(packed.store.lengths(shard))
            _, documents = fed.setdefault((packed.fingerprint, shard), (packed, np.zeros(n_documents, bool)))
            documents[logged.rows.document[where]] = True
    for packing, line in lines.items():
        rows_fed[packing] += line.rows
        line.rows_until_here, line.first_step, line.last_step = rows_fed[packing], first, last
    for (packing, shard), (packed, documents) in fed.items():
        earlier = seen.get((packed.store.fingerprint, shard), np.False_)
        lines[packing].documents += int(documents.sum())
        lines[packing].seen_before += int((documents & earlier).sum())
    for (_, shard), (packed, documents) in fed.items():
        key = (packed.store.fingerprint, shard)
        seen[key] = seen.get(key, np.False_) | documents
    return list(lines.values())


def _new_line(stage: str, packed: PackedStore) -> StoreOfStage:
    return StoreOfStage(stage, packed.name, int(packed.rows_per_shard.sum()), 0, 0)


def table_lines(stores: list[StoreOfStage]) -> Iterator[str]:
    """The table for people, a line a stage and store."""
    yield from aligned([(*COLUMNS, "store"), *((*_cells(line), line.store) for line in stores)], left=1)


def _cells(line: StoreOfStage) -> tuple[str, ...]:
    return (
        line.stage or "-",
        f"{line.first_step}-{line.last_step}",
        f"{line.rows:,}",
        f"{line.targets:,}",
        f"{line.rows / line.rows_per_epoch:.3f}",
        f"{line.rows_until_here / line.rows_per_epoch:.3f}",
        f"{line.seen_before / max(line.documents, 1):.1%}",
    )
