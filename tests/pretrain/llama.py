"""transformers' Llama as an oracle for ours."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gpt.hf.mapping import hf_parts, to_hf_config
from lit_gpt.model.config import ModelConfig
from pretrain.checkpoint.snapshot import model_tensors


def copy_as_llama(model: nn.Module, config: ModelConfig) -> LlamaForCausalLM:
    """A Llama with the weights that a model of one rank has now."""
    llama = LlamaForCausalLM(LlamaConfig(**to_hf_config(config)))
    theirs = dict(llama.named_parameters())
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            for part in hf_parts(name, config):
                theirs[part.hf_name].copy_(tensor[part.rows])
    return llama
