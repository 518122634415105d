"""What a model computes; imports torch and nothing of the data.

In go token ids with the bounds of their documents, out come logits or a summed loss. Open `config` (shapes),
`gpt`, `attention` (kernels and their choice), `rope`, `loss`, `flops`.
"""
