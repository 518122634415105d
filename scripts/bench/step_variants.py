"""The variants of a training step that scripts/bench_step.py compares.

SWITCHES changes one thing in this project's trainer: `ours-...` tries an option or an experiment,
`without-...` undoes an optimization. OTHERS trains the same shape without the trainer: `bare` is this
project's model in a plain loop, `transformers` its LlamaForCausalLM, `litgpt` the recipe of its `pretrain`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from lit_gpt.cli import InputError
from lit_gpt.hf.mapping import to_hf_config
from lit_gpt.model import gpt as model
from lit_gpt.model import loss
from lit_gpt.model.attention import Documents
from lit_gpt.model.gpt import GPT, Transformer
from pretrain import kernels, parallel
from pretrain.data import batch, dataloader
from pretrain.data.batch import Batch
from pretrain.data.dataloader import DataLoader
from pretrain.data.inputs import open_inputs
from pretrain.data.numbering import Numbering
from pretrain.options import TrainOptions

LITGPT_LOSS_CHUNK = 128  # tokens, as `litgpt pretrain` has it


@dataclass(frozen=True)
class Switch:
    """Options of the trainer, and a change to make in its process before it is constructed."""

    options: dict[str, Any] = field(default_factory=dict)
    apply: Callable[[], object] = lambda: None


def longest_first(batch: Batch) -> Batch:
    """Sort the documents of a micro-batch by length: the same loss, another order of the kernels' blocks."""
    bounds = batch.documents.cu_seqlens.long()
    lengths, order = bounds.diff().sort(descending=True, stable=True)
    ends = lengths.cumsum(0)
    index = torch.repeat_interleave(bounds[:-1][order] - (ends - lengths), lengths) + torch.arange(
        len(batch.input_ids.flatten())
    )
    input_ids, labels, positions = (x.flatten()[index].view(x.shape) for x in batch[:3])
    cu_seqlens = torch.cat([bounds[:1], ends]).to(torch.int32)
    return Batch(input_ids, labels, positions, Documents(cu_seqlens, batch.documents.max_seqlen))


def _replace(owner: Any, name: str, value: object) -> None:
    assert hasattr(owner, name), f"{owner} has no {name} to replace"
    setattr(owner, name, value)


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
    "ours-without-losses": Switch({"log_losses": False}),
    "ours-fa2": Switch({"attention": "fa2"}),
    "ours-sdpa": Switch({"attention": "sdpa"}),
    "ours-deterministic": Switch({"deterministic": True}),
    "ours-sharded": Switch({"force_sharding": True}),
    "ours-float8": Switch({"float8": True}),
    # Experiments.
    "ours-float8-rowwise": Switch({"float8": True}, partial(_replace, kernels, "FLOAT8_RECIPE", "rowwise")),
    "ours-longest-first": Switch(apply=_order_documents),
    "ours-autotune": Switch(apply=partial(_compile_with, "max-autotune-no-cudagraphs")),
    "ours-cudagraphs": Switch(apply=partial(_compile_with, "reduce-overhead")),
    # Undone, one at a time.
    "without-buckets": Switch(apply=partial(_replace, batch, "SHORT_DOCUMENTS", 0)),
    "without-wide-rope": Switch(apply=partial(_replace, model, "rotate", _rotate_by_roll)),
    "without-large-chunks": Switch(apply=partial(_replace, loss, "LARGE_CARD_BYTES", float("inf"))),
    "without-fp32-product": Switch(apply=partial(_replace, loss, "_add_product", _add_rounded_product)),
    "without-compiled-norm": Switch(apply=_compile_blocks_only),
    "without-kept-root": Switch({"force_sharding": True}, _give_up_root),
    "without-unfilled": Switch({"deterministic": True}, _fill_memory),
}


def bare(options: TrainOptions) -> Callable[[], None]:
    """This project's model and batches in the shortest loop that trains."""
    device = _device()
    data, _, config = open_inputs(options)
    rows = options.global_batch_size
    batches = DataLoader(data, numbering=Numbering(rows), micro_batch_size=rows, device=device)
    with device:
        gpt = GPT(config)
    gpt.init_weights(0)
    if device.type == "cuda":
        for block in gpt.transformer.h:
            block.compile()

    def loss() -> Tensor:
        batch = next(batches)
        micro = batch.micro_batches[0]
        with _autocast(options, device):
            return gpt(micro.input_ids, micro.positions, micro.documents, micro.labels) / batch.n_targets

    return _plain_step(gpt, loss)


def transformers(options: TrainOptions) -> Callable[[], None]:
    """LlamaForCausalLM on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, device = open_inputs(options).config, _device()
    with device:
        llama = LlamaForCausalLM(LlamaConfig(**to_hf_config(shape), use_cache=False))
    if options.precision == "bf16-true":
        llama = llama.to(torch.bfloat16)
    if device.type == "cuda":
        llama.compile()

    def loss() -> Tensor:
        tokens = torch.randint(shape.vocab_rows, (options.global_batch_size, shape.block_size), device=device)
        with _autocast(options, device):
            return llama(input_ids=tokens, labels=tokens).loss

    return _plain_step(llama, loss)


def litgpt(options: TrainOptions) -> Callable[[], None]:
    """litgpt's pretraining on random tokens: bf16-true on CUDA, model compiled, loss in chunks."""
    try:
        from litgpt.config import Config
        from litgpt.model import GPT as LitGPT
        from litgpt.utils import chunked_cross_entropy
    except ImportError as error:
        raise InputError("the package litgpt is not installed") from error
    shape, device = open_inputs(options).config, _device()
    config = Config(
        block_size=shape.block_size,
        padded_vocab_size=shape.vocab_rows,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_query_groups=shape.n_query_groups,
        n_embd=shape.n_embd,
        intermediate_size=shape.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    with device:
        lit = LitGPT(config)
    if device.type == "cuda":
        lit = torch.compile(lit.to(torch.bfloat16))

    def loss() -> Tensor:
        size = (options.global_batch_size, shape.block_size + 1)
        tokens = torch.randint(shape.vocab_rows, size, device=device)
        logits = lit(tokens[:, :-1].contiguous())
        return chunked_cross_entropy(logits, tokens[:, 1:].contiguous(), chunk_size=LITGPT_LOSS_CHUNK)

    return _plain_step(lit, loss)


OTHERS = {"bare": bare, "transformers": transformers, "litgpt": litgpt}


def _plain_step(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step in the shortest loop that trains; `loss` is that of the next batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-4, fused=True)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _autocast(options: TrainOptions, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed")


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
