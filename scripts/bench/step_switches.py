"""The trainer with one thing otherwise: the variants `ours-...` and `without-...` of bench_step.py.

What was changed for speed is undone one at a time (`without-...`), what might be next is tried (`ours-...`).
Nothing of it is reachable from the trainer's options but what they name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from lit_gpt.model import gpt as model
from lit_gpt.model import loss
from lit_gpt.model.attention import Documents
from lit_gpt.model.gpt import Transformer
from pretrain import parallel
from pretrain.data import batch, dataloader
from pretrain.data.batch import Batch
from pretrain.options import TrainOptions


@dataclass(frozen=True)
class Switch:
    """Options of the trainer, and what to do in its process before it is made."""

    options: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[], object] = lambda: None


def longest_first(batch: Batch) -> Batch:
    """The micro-batch with its documents by length: the same loss, another order of the kernels' blocks."""
    bounds = batch.documents.cu_seqlens.long()
    lengths, order = bounds.diff().sort(descending=True, stable=True)
    ends = lengths.cumsum(0)
    index = torch.repeat_interleave(bounds[:-1][order] - (ends - lengths), lengths) + torch.arange(
        len(batch.input_ids.flatten())
    )
    input_ids, labels, positions = (x.flatten()[index].view(x.shape) for x in batch[:3])
    cu_seqlens = torch.cat([bounds[:1], ends]).to(torch.int32)
    return Batch(input_ids, labels, positions, Documents(cu_seqlens, batch.documents.max_seqlen))


def _order_documents() -> None:
    assemble = dataloader.assemble
    dataloader.assemble = lambda *arguments: longest_first(assemble(*arguments))


def _rotate_by_roll(x_NHD: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    swapped = x_NHD.roll(x_NHD.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_NHD * cos, swapped, signed_sin).to(x_NHD.dtype)


def _add_rounded_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total += left @ right


def _compile_blocks_only() -> None:
    compile_blocks = Transformer.compile_blocks

    def only_blocks(transformer: Transformer, **options: Any) -> None:
        compile_blocks(transformer, **options)
        transformer.ln_f._compiled_call_impl = None

    Transformer.compile_blocks = only_blocks  # type: ignore


def _compile_with(mode: str) -> None:
    compile_blocks = Transformer.compile_blocks
    Transformer.compile_blocks = lambda transformer: compile_blocks(transformer, mode=mode)  # type: ignore


def _fill_memory() -> None:
    launch = parallel.launch

    def launch_and_fill(options: TrainOptions) -> Fabric:
        fabric = launch(options)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        return fabric

    parallel.launch = launch_and_fill


def _give_up_root() -> None:
    parallel.fully_shard = lambda module, **options: fully_shard(
        module, **options | {"reshard_after_forward": True}
    )


SWITCHES = {
    "ours": Switch(),
    "ours-fa2": Switch({"attention": "fa2"}),
    "ours-sdpa": Switch({"attention": "sdpa"}),
    "ours-deterministic": Switch({"deterministic": True}),
    "ours-sharded": Switch({"force_sharding": True}),
    "ours-float8": Switch({"float8": True}),
    # Experiments.
    "ours-float8-rowwise": Switch({"float8": True}, partial(setattr, parallel, "FLOAT8_RECIPE", "rowwise")),
    "ours-longest-first": Switch(apply=_order_documents),
    "ours-autotune": Switch(apply=partial(_compile_with, "max-autotune-no-cudagraphs")),
    "ours-cudagraphs": Switch(apply=partial(_compile_with, "reduce-overhead")),
    # Undone, one at a time.
    "without-buckets": Switch(apply=partial(setattr, batch, "SHORT_DOCUMENTS", 0)),
    "without-wide-rope": Switch(apply=partial(setattr, model, "rotate", _rotate_by_roll)),
    "without-large-chunks": Switch(apply=partial(setattr, loss, "LARGE_CARD_BYTES", float("inf"))),
    "without-fp32-product": Switch(apply=partial(setattr, loss, "_add_product", _add_rounded_product)),
    "without-compiled-norm": Switch(apply=_compile_blocks_only),
    "without-kept-root": Switch({"force_sharding": True}, _give_up_root),
    "without-unfilled": Switch({"deterministic": True}, _fill_memory),
}
