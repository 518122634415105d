"""Which steps saw a document: by the order's inverse, without the log, and by the log, without the order."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_gpt.rows.sample_order import RowAddresses
from pretrain.data.training_data import TrainingData
from pretrain.datapoints.files import PIECES, RunLog, Segment, first_step, read_row_groups
from pretrain.datapoints.replay import LoggedRows, Replay


class Sighting(NamedTuple):
    """A piece of a document in a step."""

    step: int
    sample: int
    start: int
    length: int


def sightings_by_order(replay: Replay, document_id: str) -> list[Sighting]:
    """All pieces of all documents of that id in the steps logged without a gap, by the order's inverse."""
    sightings = []
    size = replay.log.global_batch_size
    for segment, last in _spans(replay.log):
        data = replay.data(segment)
        for store, shard, document in find_document(data, document_id):
            packing = data.stores[store].shard(shard)
            pieces = np.flatnonzero(packing.document == document)
            rows = np.searchsorted(packing.row_offsets, pieces, side="right") - 1
            for samples in _epochs(data, store, shard, rows, last * size):
                for piece, sample in zip(pieces.tolist(), samples.tolist(), strict=True):
                    logged = (segment.first_step - 1) * size <= sample < last * size
                    if logged and not replay.log.in_gap(sample // size + 1):
                        where = int(packing.start[piece]), int(packing.length[piece])
                        sightings.append(Sighting(sample // size + 1, sample, *where))
    return sorted(sightings)


def sightings_by_log(replay: Replay, document_id: str) -> list[Sighting]:
    """The same, by reading the log."""
    sightings: list[Sighting] = []
    for segment, last in _spans(replay.log):
        for store, shard, document in find_document(replay.data(segment), document_id):
            for part in replay.log.parts:
                if first_step(part) <= last:
                    sightings += _search(part, (segment.first_step, last), store, shard, document)
    return sorted(sighting for sighting in sightings if not replay.log.in_gap(sighting.step))


def find_document(data: TrainingData, document_id: str) -> list[tuple[int, int, int]]:
    """All (store, shard, document) that carry an id."""
    return [
        (number, shard, document)
        for number, packed in enumerate(data.stores)
        for shard, document in packed.store.find(document_id)
    ]


def _epochs(data: TrainingData, store: int, shard: int, rows: np.ndarray, end: int) -> Iterator[np.ndarray]:
    """The samples that the rows are in each epoch, until none is before `end`."""
    for epoch in range(end + 1):
        of_all = [np.full_like(rows, number) for number in (store, epoch, shard)]
        address = RowAddresses(of_all[0], of_all[1], of_all[2], rows)
        samples = data.order.inverse(address)
        if len(samples) == 0 or samples.min() >= end:
            return
        yield samples


def _search(part: Path, steps: tuple[int, int], store: int, shard: int, document: int) -> Iterator[Sighting]:
    """The pieces of a document in a part."""
    columns = ["step", "sample", *PIECES, "store", "shard"]
    for table in read_row_groups(part, columns, step=steps, shard=(shard, shard)):
        logged = LoggedRows(table)
        pieces = np.flatnonzero(logged["document"] == document)
        rows = np.searchsorted(logged.offsets, pieces, side="right") - 1
        for piece, row in zip(pieces.tolist(), rows.tolist(), strict=True):
            if logged["store"][row] == store and logged["shard"][row] == shard:
                found = (
                    logged["step"][row],
                    logged["sample"][row],
                    logged["start"][piece],
                    logged["length"][piece],
                )
                yield Sighting(*map(int, found))


def _spans(log: RunLog) -> list[tuple[Segment, int]]:
    """Each segment with its last logged step."""
    segments = log.segments
    ends = [following.first_step - 1 for following in segments[1:]] + [log.last_step]
    return [(segment, min(end, log.last_step)) for segment, end in zip(segments, ends, strict=True)]
