"""Thin commands over lit_gpt and pretrain."""
