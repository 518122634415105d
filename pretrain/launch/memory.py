"""Memory of a step and size of a checkpoint by arithmetic: an estimate, good to about a fifth."""

from dataclasses import dataclass

from lit_gpt.model.config import ModelConfig
from lit_gpt.model.flops import matmul_parameters
from lit_gpt.model.loss import cuda_chunk_tokens
from pretrain.options import TrainOptions
from pretrain.trainable import frozen_rows, n_trained


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device at the peak of a step."""

    state: int
    """Weights, gradients and AdamW's two moments, as far as they lie on this device."""
    unsharded: int
    """Copies of weights in the compute dtype: all of them, or two blocks, the embedding and the head."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    head: int
    """Logits of a chunk and the gradients that the loss makes."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.unsharded + self.activations + self.head


def estimate_memory(
    options: TrainOptions, config: ModelConfig, compute_bytes: int = 2, device_bytes: float = 80e9
) -> MemoryEstimate:
    """Add up a compiled step's memory.

    Args:
        options: precision, sharding, micro-batch and checkpointing count.
        config: With its vocabulary known.
        compute_bytes: Of a number in matrix products: 2 for bf16, 4 for 32-true.
        device_bytes: Memory of a device, which the chunks of the loss go by.
    """
    master_bytes = 2 if options.precision == "bf16-true" else 4
    n_parameters = config.n_parameters
    trained = n_trained(frozen_rows(options.trainable, config), config)
    block = (matmul_parameters(config) - config.vocab_rows * config.n_embd) // config.n_layer
    head = config.vocab_rows * config.n_embd
    weights_are_in_compute_dtype = not options.sharded and master_bytes == compute_bytes
    whole_weights = not options.sharded or options.sharding_strategy in ("NO_SHARD", "SHARD_GRAD_OP")
    rows = min(options.micro_batch_size, options.global_batch_size // options.world_size)
    tokens = rows * config.block_size
    return MemoryEstimate(
        state=master_bytes * (n_parameters + 3 * trained) // shards(options),
        unsharded=0
        if weights_are_in_compute_dtype
        else compute_bytes
        * (n_parameters if whole_weights else 2 * block + (1 if config.tie_embeddings else 2) * head),
        activations=tokens * compute_bytes * _kept_per_token(options, config),
        # A logit, its gradient, and log-softmax, softmax and one-hot in fp32; then the head's gradient.
        head=min(tokens, cuda_chunk_tokens(device_bytes)) * config.vocab_rows * (2 * compute_bytes + 12)
        + 4 * head,
    )


def shards(options: TrainOptions) -> int:
    """Over how many devices each weight is split."""
    if options.sharding_strategy == "NO_SHARD":
        return 1
    if options.sharding_strategy == "HYBRID_SHARD":
        return options.shard_group_size or options.devices
    return options.world_size


def checkpoint_bytes(options: TrainOptions, config: ModelConfig) -> int:
    """Of one checkpoint: weights, and two moments of what is trained."""
    numbers = config.n_parameters + 2 * n_trained(frozen_rows(options.trainable, config), config)
    return (2 if options.precision == "bf16-true" else 4) * numbers


def _kept_per_token(options: TrainOptions, config: ModelConfig) -> int:
    """Numbers that stay for the backward pass, per token, over all blocks.

    A block keeps its input, the input of its MLP half, both norms' outputs, the joint projection (the values
    are a view of it), rotated queries and keys, what attention gives, gate, up and their product. Of a
    recomputed block its input stays, and of one at a time everything.
    """
    queries, keys = config.n_head * config.head_dim, config.n_query_groups * config.head_dim
    attention = config.qkv_rows + queries + keys + queries
    block = 4 * config.n_embd + attention + 3 * config.intermediate_size
    recomputed = {"none": 0, "selective": config.n_layer // 2, "full": config.n_layer}
    n_recomputed = recomputed[options.activation_checkpointing]
    at_a_time = block if n_recomputed else 0
    return (config.n_layer - n_recomputed) * block + n_recomputed * config.n_embd + at_a_time
