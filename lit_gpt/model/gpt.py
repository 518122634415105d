"""The Llama-style decoder that is trained.

Shape suffixes: B = rows, T = tokens (of a row, or of the flattened batch), N = heads, G = key and value
heads, H = head width, C = width of the residual stream, V = vocabulary.
"""

import hashlib
import re
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lit_gpt.model.attention import Documents, attention, keep_sdpa_out_of_graphs
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.loss import chunked_cross_entropy, token_losses
from lit_gpt.model.rope import inverse_frequencies, rotary_tables, rotate

_WRAPPERS = re.compile(r"(_forward_module|_checkpoint_wrapped_module|_orig_mod)\.")


def clean_name(name: str) -> str:
    """A parameter's name without what Fabric, activation checkpointing and compile put into it."""
    return _WRAPPERS.sub("", name)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the model's order; a tied head is not one of its own."""
    with torch.device("meta"):
        model = GPT(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


class Linear(nn.Linear):
    """Without a bias, and arbitrary at first: `GPT.init_weights` draws the weights."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, bias=False)

    def reset_parameters(self) -> None:
        """Skip: drawing takes minutes for 7B, and on the meta device imports half of torch."""


class Embedding(nn.Embedding):
    """Arbitrary at first, as `Linear`."""

    def reset_parameters(self) -> None:
        """Skip."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, inside documents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_groups = config.n_head, config.n_query_groups
        self.head_dim = config.head_dim
        self.qkv = Linear(config.n_embd, config.qkv_rows)
        self.proj = Linear(config.n_head * config.head_dim, config.n_embd)

    def forward(self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        qkv = self.qkv(x_BTC).view(-1, self.n_head + 2 * self.n_groups, self.head_dim)
        qk, v_TGH = qkv.split((self.n_head + self.n_groups, self.n_groups), dim=1)
        q_TNH, k_TGH = rotate(qk, *rotary).split((self.n_head, self.n_groups), dim=1)
        out_TNH = attention(q_TNH, k_TGH, v_TGH, documents)
        return self.proj(out_TNH.view(*x_BTC.shape[:2], -1))


class GatedMLP(nn.Module):
    """SwiGLU: proj(silu(fc_1(x)) * fc_2(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc_1 = Linear(config.n_embd, config.intermediate_size)
        self.fc_2 = Linear(config.n_embd, config.intermediate_size)
        self.proj = Linear(config.intermediate_size, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = Attention(config)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, x_BTC: Tensor, rotary: tuple[Tensor, Tensor], documents: Documents) -> Tensor:
        x_BTC = x_BTC + self.attn(self.norm_1(x_BTC), rotary, documents)
        return x_BTC + self.mlp(self.norm_2(x_BTC))


class Transformer(nn.Module):
    """Token ids to hidden states: embedding, blocks, last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_rows, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)
        # No buffer: after construction on the meta device a non-persistent one would hold garbage.
        self._frequencies, self._rope_factor = inverse_frequencies(config)
        self._compiled = False

    def compile_blocks(self, **options: Any) -> None:
        """Compile each block (one graph serves all; it breaks at SDPA) and the last norm.

        All is static but the number of documents. Without the marking in `forward` a new one would compile
        again, and a smaller last batch would make every shape dynamic, which costs speed from then on.
        """
        self._compiled = True
        keep_sdpa_out_of_graphs()
        for module in (*self.h, self.ln_f):
            module.compile(dynamic=False, **options)

    def forward(self, input_ids: Tensor, positions: Tensor, documents: Documents) -> Tensor:
        if self._compiled:
            torch._dynamo.maybe_mark_dynamic(documents.cu_seqlens, 0)
        self._frequencies = self._frequencies.to(positions.device)
        rotary = rotary_tables(self._frequencies, self._rope_factor, positions.flatten())
        hidden_BTC = self.wte(input_ids)
        if torch.is_autocast_enabled(hidden_BTC.device.type):
            # As with FSDP2, whose embedding is bf16 here: half the traffic of an fp32 residual stream.
            hidden_BTC = hidden_BTC.to(torch.get_autocast_dtype(hidden_BTC.device.type))
        for block in self.h:
            hidden_BTC = block(hidden_BTC, rotary, documents)
        return self.ln_f(hidden_BTC)


class GPT(nn.Module):
    """A transformer and its head. Weights are arbitrary until `init_weights` or a load."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Linear(config.n_embd, config.vocab_rows)
        self.tie_weights()

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        labels: Tensor | None = None,
        *,
        by_token: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, or with labels the summed loss: the head's weight is used in here, where FSDP2 unshards it.

        Args:
            input_ids: (B, T) int64.
            positions: (B, T) int64, each token's place in its segment.
            documents: bounds over the flattened B*T tokens; attention stays inside them.
            labels: (B, T) int64, -100 (`IGNORE_INDEX`) where there is no target.
            by_token: with labels give the losses of the tokens, too.

        Returns:
            (B, T, V) logits in the compute dtype; with labels the SUM of the token losses, an fp32 scalar;
            with `by_token` beside it these losses, fp32 (B*T,), without a gradient.
        """
        hidden_BTC = self.transformer(input_ids, positions, documents)
        if labels is None:
            return self.lm_head(hidden_BTC)
        loss = token_losses if by_token else chunked_cross_entropy
        return loss(hidden_BTC.flatten(0, 1), self.lm_head.weight, labels.flatten())

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """TinyLlama's initialisation; the same numbers on any device and any number of ranks.

        Normal with std sqrt(2 / (5 C)), output projections 1 / (sqrt(C) n_layer), norms one. Every parameter
        has a generator of its own, seeded from (seed, name), and is drawn complete on the CPU in fp32, since
        CUDA's numbers depend on the device; of a sharded parameter each rank keeps its part.
        """
        from torch.distributed.tensor import DTensor, distribute_tensor  # takes half a second, only used here

        self.tie_weights()
        for name, parameter in self.named_parameters():
            name = clean_name(name)
            full = torch.ones(parameter.shape)
            if parameter.dim() == 2:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
                full.normal_(0.0, self._init_std(name), generator=generator)
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                full = distribute_tensor(full, mesh, placements, src_data_rank=None)
            parameter.copy_(full)

    def tie_weights(self) -> None:
        """Share the embedding with the head where the shape says so; leaving the meta device unties them."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def _init_std(self, name: str) -> float:
        if name.endswith(("attn.proj.weight", "mlp.proj.weight")):
            return self.config.n_embd**-0.5 / self.config.n_layer
        return (2 / (5 * self.config.n_embd)) ** 0.5
