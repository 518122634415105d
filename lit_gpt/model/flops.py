"""Floating-point operations of a training step by stated formulas, and what devices can do at best."""

from lit_gpt.model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Weights a token is multiplied with: all matrices and the head (also a tied one), not the embedding."""
    attention = (config.qkv_rows + config.n_head * config.head_dim) * config.n_embd
    mlp = 3 * config.n_embd * config.intermediate_size
    return config.n_layer * (attention + mlp) + config.vocab_rows * config.n_embd


def flops_per_token(config: ModelConfig, sequence_length: float) -> float:
    """Forward and backward: 6 * N_matmul + 12 * L * d * T, d being the width of all query heads.

    This is the PaLM convention (Chowdhery et al. 2022, appendix B): attention counts as if not causal.
    """
    width = config.n_head * config.head_dim
    return 6 * matmul_parameters(config) + 12 * config.n_layer * width * sequence_length


def flops_inside_documents(config: ModelConfig, tokens: int, attention_pairs: int) -> float:
    """A step's FLOP where attention stays inside documents.

    Args:
        config: the model.
        tokens: tokens of the step.
        attention_pairs: sum over its documents of length squared.
    """
    width = config.n_head * config.head_dim
    return 6 * matmul_parameters(config) * tokens + 12 * config.n_layer * width * attention_pairs


def device_peak_flops(name: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s by its name (`torch.cuda.get_device_name`), None if unknown.

    From the vendors' data sheets, without sparsity. The first entry found in the name counts.
    """
    return next((peak for part, peak in _PEAK_FLOPS if part.lower() in name.lower()), None)


_PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("L40S", 362e12),
    ("A40", 149.7e12),
    ("A6000", 154.8e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("MI300X", 1307e12),
    ("MI250X", 383e12),
)
