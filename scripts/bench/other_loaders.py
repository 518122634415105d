"""Other loaders for bench_loader.py, over the same tokens, each used as its documentation says.

Each function writes the tokens in its library's format, then yields batches without end: int64 tensors of
`(rows, block_size + 1)`, or the library's own type of the same content. Each imports its library when called,
so that libraries need not be installed.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from lit_gpt.store.token_store import TokenStore

Batches = Iterator[Any]


def memmap_windows(store: TokenStore, folder: Path, rows: int, block_size: int) -> Batches:
    """Random windows of the shards' memory maps: a lower bound of the work of any loader."""
    shards = [np.asarray(store.tokens(shard)) for shard in range(store.n_shards)]
    shards = [shard for shard in shards if len(shard) > block_size]
    rng = np.random.default_rng(0)
    share = np.array([len(shard) for shard in shards]) / sum(map(len, shards))
    while True:
        chosen = rng.choice(len(shards), rows, p=share)
        windows = []
        for shard, place in zip(chosen.tolist(), rng.random(rows).tolist(), strict=True):
            start = int(place * (len(shards[shard]) - block_size))
            windows.append(shards[shard][start : start + block_size + 1])
        yield torch.from_numpy(np.stack(windows).astype(np.int64))


def datatrove(
    store: TokenStore, folder: Path, rows: int, block_size: int, positions: bool = False
) -> Batches:
    """DatatroveFileDataset over one .ds file, read in order as it is made for."""
    from datatrove.utils.dataset import DatatroveFileDataset

    path = folder / "tokens.ds"
    if not path.exists():
        with path.open("wb") as file:
            for shard in range(store.n_shards):
                file.write(store.tokens(shard).tobytes())
        lengths = np.concatenate([store.lengths(shard) for shard in range(store.n_shards)])
        np.cumsum(lengths, dtype=np.uint64).tofile(f"{path}.index")
    dataset = DatatroveFileDataset(
        str(path), block_size, token_size=store.dtype.itemsize, return_positions=positions
    )
    while True:
        yield from DataLoader(dataset, batch_size=rows, drop_last=True)


def litdata(store: TokenStore, folder: Path, rows: int, block_size: int) -> Batches:
    """The successor of TinyLlama's packed format: StreamingDataset with a TokensLoader, in this process."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize

    window = block_size + 1
    spans = [
        (shard, first, min(first + 64 * window, len(store.tokens(shard))))
        for shard in range(store.n_shards)
        for first in range(0, len(store.tokens(shard)), 64 * window)
    ]
    optimize(
        partial(_span, store.path),
        spans,
        str(folder / "litdata"),
        num_workers=1,
        chunk_size=window * 8192,
        item_loader=TokensLoader(),
    )
    dataset = StreamingDataset(
        str(folder / "litdata"), item_loader=TokensLoader(block_size=window), shuffle=True, drop_last=True
    )
    while True:
        for batch in StreamingDataLoader(dataset, batch_size=rows, num_workers=0, drop_last=True):
            yield batch.long()


def _span(path: Path, span: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    shard, first, last = span
    yield torch.from_numpy(np.array(TokenStore.open(path).tokens(shard)[first:last]))


def mosaicml_streaming(store: TokenStore, folder: Path, rows: int, block_size: int) -> Batches:
    """StreamingDataset over MDS shards of uint16 rows."""
    from streaming import MDSWriter, StreamingDataset

    window = block_size + 1
    columns = {"tokens": f"ndarray:{store.dtype.name}:{window}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for shard in range(store.n_shards):
            tokens = store.tokens(shard)
            for first in range(0, len(tokens) - window, window):
                writer.write({"tokens": np.array(tokens[first : first + window])})
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=rows)
    while True:
        yield from DataLoader(dataset, batch_size=rows, drop_last=True, collate_fn=_stack)


def _stack(items: list[dict[str, np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([item["tokens"] for item in items]).astype(np.int64))


def megatron_core(store: TokenStore, folder: Path, rows: int, block_size: int) -> Batches:
    """GPTDataset over our shards, which are in its format."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    # Blending several shards requires a process group.
    dist.init_process_group("gloo", init_method=f"file://{folder.absolute()}/group", rank=0, world_size=1)

    class Tokenizer:
        eod = store.eos_id
        pad = 0
        vocab_size = store.vocab_size
        unique_identifiers = {"tokenizer": store.manifest.tokenizer}  # noqa: RUF012

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=block_size,
        blend=([str(store.path / shard.name) for shard in store.manifest.shards], None),
        split="1,0,0",
        path_to_cache=str(folder / "megatron"),
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    samples = 20 * store.n_tokens // block_size
    dataset = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
    while True:
        yield from DataLoader(dataset, batch_size=rows, drop_last=True)


OTHERS: dict[str, Callable[[TokenStore, Path, int, int], Batches]] = {
    "datatrove, with positions": partial(datatrove, positions=True),
    "datatrove": datatrove,
    "litdata, TokensLoader": litdata,
    "mosaicml-streaming": mosaicml_streaming,
    "megatron-core GPTDataset": megatron_core,
    "random windows of a memory map": memmap_windows,
}
