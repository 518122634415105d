"""What one step was fed, row by row: out of the log, or by the order of the data where it is not logged."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lit_gpt.rows.rows import Rows, row_checksum
from lit_gpt.rows.sample_order import RowAddresses
from lit_gpt.store import masking
from lit_gpt.store.token_store import TokenStore
from pretrain.data.row_reader import RowReader, RowTable
from pretrain.datapoints.files import from_lists, losses_of
from pretrain.datapoints.periods import DataPeriod
from pretrain.datapoints.replay import Replay


class FedRow(NamedTuple):
    """A row as the model was fed it."""

    sample: int
    rank: int | None
    """None where it is not logged."""
    skipped: bool
    """Whether the step was not applied."""
    store: TokenStore
    shard: int
    row: int
    segments: Rows
    """Of this row alone."""
    tokens: list[np.ndarray]
    """Of each segment its `length` + 1 raw tokens."""
    losses: np.ndarray | None
    """Of each segment the mean loss of its targets in nats; None where they are not logged."""
    is_proved: bool
    """Whether the tokens have the checksum that is logged, or else that of the packing."""


class FedStep(NamedTuple):
    """A step's rows, by sample."""

    period: DataPeriod
    is_logged: bool
    rows: list[FedRow]


def read_step(replay: Replay, step: int) -> FedStep:
    """Read what a step was fed, or will be if the run goes on as it is; steps count from 1.

    Raises:
        InputError: the log is damaged, or a store is missing or not what the run read.
    """
    logged = replay.log.step_rows(step)
    if logged.num_rows:
        [(period, logged)] = replay.log.by_period(logged)
        data, rows = replay.data(period), from_lists(logged)
        store, shard, row, checksum = (
            logged[name].to_numpy() for name in ("store", "shard", "row", "checksum")
        )
        addresses = RowAddresses(store, np.zeros_like(row), shard, row)  # of whichever epoch
        table, sample = RowTable(addresses, checksum, rows), logged["sample"].to_numpy()
    else:
        period = replay.log.periods[int(replay.log.period_of(np.array(step)))]
        data, first = replay.data(period), period.numbering.first_sample_of(step)
        sample = first + np.arange(period.global_batch_size)
        table = data.table(data.rows(sample))
    reader = RowReader(data.stores, table)
    tokens = [reader.read_unchecked(at, at + 1)[0].tokens for at in range(sample.size)]
    stores = [packed.store for packed in data.stores]
    return FedStep(period, logged.num_rows > 0, _rows(logged, table, sample, tokens, stores))


def _rows(
    logged: pa.Table, table: RowTable, sample: np.ndarray, tokens: list[np.ndarray], stores: list[TokenStore]
) -> list[FedRow]:
    ranks, applied = (logged[name].to_pylist() or [None] * sample.size for name in ("rank", "applied"))
    losses, offsets = losses_of(logged), table.rows.offsets
    rows = []
    for at, read in enumerate(tokens):
        store, _, shard, row = (int(column[at]) for column in table.addresses)
        segments = table.rows.part(at, at + 1)
        rows.append(
            FedRow(
                int(sample[at]),
                ranks[at],
                applied[at] is False,
                stores[store],
                shard,
                row,
                segments,
                np.split(read, np.cumsum(segments.length + 1)[:-1]),
                None if losses is None else losses[offsets[at] : offsets[at + 1]].astype(np.float32),
                row_checksum(read) == table.checksums[at],
            )
        )
    return rows


def text_of_row(row: FedRow, decode: Callable[[np.ndarray], str]) -> Iterator[str]:
    """Of each segment a title and its text, for people; in masked stores what counts is in ⟦ ⟧."""
    infos = row.store.document_info(row.shard, row.segments.document)
    losses = [""] * len(infos) if row.losses is None else [f", loss {loss:.4f}" for loss in row.losses]
    for info, start, length, loss, read in zip(
        infos, row.segments.start, row.segments.length, losses, row.tokens, strict=True
    ):
        name = json.dumps(info.id, ensure_ascii=False)
        title = f"--- document {name}, targets {start} to {start + length - 1} of {info.n_tokens - 1}{loss}"
        if row.store.masked:
            counted = np.count_nonzero(masking.is_target(read[1:]))
            yield f"{title}; {counted} of them count, the text in ⟦ ⟧"
            yield masking.mark_targets(read, decode)
        else:
            yield title
            yield decode(read)
