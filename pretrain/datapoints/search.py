"""Which steps saw a document: by the order's inverse, without the log, and by the log, without the order."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.rows.sample_order import RowAddresses
from pretrain.data.numbering import Numbering
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import SEGMENTS, RunLog, first_step, from_lists, read_row_groups
from pretrain.datapoints.replay import Replay


class Found(NamedTuple):
    """A document in one of the stores that a run read in some steps."""

    data: TrainingData
    numbering: Numbering
    first_step: int
    last_step: int
    """The last one that is logged."""
    store: int
    shard: int
    document: int


class Occurrence(NamedTuple):
    """A segment of a document in a step."""

    step: int
    sample: int
    start: int
    length: int


def find_document(replay: Replay, document_id: str) -> list[Found]:
    """All documents that have an id, in each period of the run's data."""
    log = replay.log
    return [
        Found(data, period.numbering, period.first_step, min(end, log.last_step), store, shard, document)
        for period, end in log.spans()
        for data in [replay.data(period)]
        for store, packed in enumerate(data.stores)
        for shard, document in packed.store.find(document_id)
    ]


def occurrences_by_order(log: RunLog, documents: list[Found]) -> list[Occurrence]:
    """All segments of the documents in the logged steps outside gaps, by the order's inverse."""
    occurrences = []
    for found in documents:
        rows = found.data.stores[found.store].rows(found.shard)
        segments = np.flatnonzero(rows.document == found.document)
        for samples in _epochs(found, rows.row_of_segment[segments]):
            for segment, sample in zip(segments.tolist(), samples.tolist(), strict=True):
                step = found.numbering.step_of(sample)
                if found.first_step <= step <= found.last_step and not log.in_gap(step):
                    start, length = int(rows.start[segment]), int(rows.length[segment])
                    occurrences.append(Occurrence(step, sample, start, length))
    return sorted(occurrences)


def occurrences_by_log(log: RunLog, documents: list[Found]) -> list[Occurrence]:
    """The same, by reading the log."""
    occurrences = [
        occurrence
        for found in documents
        for part in log.parts
        if first_step(part) <= found.last_step
        for occurrence in _search(part, found)
        if not log.in_gap(occurrence.step)
    ]
    return sorted(occurrences)


def _epochs(found: Found, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The samples that rows of the document's shard are in each epoch, until all are of later steps.

    A row that was dealt before the stage began is in sample -1.
    """
    order, end = found.data.order, found.numbering.first_sample_of(found.last_step + 1)
    for epoch in itertools.count(order.start.positions[found.store] // order.rows_per_epoch(found.store)):
        store, of_epoch, shard = (np.full_like(rows, number) for number in (found.store, epoch, found.shard))
        samples = order.inverse(RowAddresses(store, of_epoch, shard, rows))
        if len(samples) == 0 or samples.min() >= end:
            return
        yield samples


def _search(part: Path, found: Found) -> Iterator[Occurrence]:
    """The segments of a document in a part."""
    columns = ["step", "sample", "store", "shard", *SEGMENTS]
    steps, shards = (found.first_step, found.last_step), (found.shard, found.shard)
    for table in read_row_groups(part, columns, step=steps, shard=shards):
        rows = from_lists(table)
        step, sample, store = (table[name].to_numpy() for name in ("step", "sample", "store"))
        segments = np.flatnonzero(rows.document == found.document)
        for segment, row in zip(segments, rows.row_of_segment[segments], strict=True):
            if store[row] == found.store:
                where = step[row], sample[row], rows.start[segment], rows.length[segment]
                yield Occurrence(*map(int, where))
