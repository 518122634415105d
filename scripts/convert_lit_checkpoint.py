#!/usr/bin/env python
"""A checkpoint of the trainer -> a folder that `AutoModelForCausalLM.from_pretrained` loads."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from lit_gpt.cli import InputError, run_command
from lit_gpt.files import new_folder
from lit_gpt.hf.exporter import GIGABYTE, write_hf_folder
from lit_gpt.hf.trained_model import TrainedModel, open_checkpoint
from lit_gpt.option_types import PositiveFloat
from pretrain.monitor.metrics import read_metrics

# For --check: letters, digits, signs, white space, a word in another script, and what looks like a token.
CHECKED_TEXTS = [
    "Es war einmal ein König, der hatte drei Töchter.",
    "  Zwei Leerzeichen, 3,14 und 1 000 000 €;\n\tein Tabulator -- „Anführungszeichen“.",
    "日本語, русский, ελληνικά, 🙂 und <s>ein</s> Text",
]
LOGITS_TOLERANCE = 1e-4  # in fp32, where logits deviate by up to 1 from their mean; in proportion beyond


@dataclass
class ConvertOptions:
    """Convert a checkpoint, written by any number of ranks, to a Hugging Face folder.

    The checkpoint is verified first; tensors are read and written one at a time; the folder appears only when
    complete.
    """

    checkpoint: Path
    """Folder of the checkpoint, OUT/iter-00000100-ckpt.pth."""
    output: Path
    """Folder to write; must not exist."""
    tokenizer_path: Path | None = None
    """Tokenizer of the training data; when not given the one that came with a Hugging Face model, or the copy
    in the first token store."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto: as the checkpoint has them."""
    max_shard_gb: PositiveFloat = 5.0
    """Largest weights file, in 10^9 bytes."""
    check: bool = False
    """Load the folder with transformers and compare logits and token ids with ours."""


def main(options: ConvertOptions) -> None:
    convert(options)
    size = sum(path.stat().st_size for path in options.output.iterdir())
    print(f"{options.output}: {size / GIGABYTE:.3f} GB, from {options.checkpoint}")


def convert(options: ConvertOptions) -> None:
    """Verify, write, check, publish.

    Raises:
        InputError: the checkpoint is damaged or holds no model, or the folder cannot be written or fails its
            check; no folder is left.
    """
    checkpoint = options.checkpoint
    dtype = None if options.dtype == "auto" else getattr(torch, options.dtype)
    with new_folder(options.output) as folder:
        source = open_checkpoint(checkpoint, options.tokenizer_path)
        losses = _losses(checkpoint, source.state)
        write_hf_folder(folder, source, losses, dtype, int(options.max_shard_gb * GIGABYTE))
        if options.check:
            check_folder(folder, source, dtype)


def check_folder(folder: Path, source: TrainedModel, dtype: torch.dtype | None) -> None:
    """Compare transformers' logits and ids with ours.

    Raises:
        InputError: they differ, and by how much.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lit_gpt.model.attention import Documents
    from lit_gpt.model.gpt import GPT

    reader, config, tokenizer, bos = source.reader, source.config, source.tokenizer, source.bos
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in CHECKED_TEXTS:
        ids = tokenizer.encode([text])[0][0 if bos else 1 : -1].tolist()
        their_ids = theirs.encode(text, add_special_tokens=bos is not None, split_special_tokens=True)
        if ids != their_ids:
            raise InputError(f"--check: AutoTokenizer encodes {text!r} as {their_ids}, the data has {ids}")

    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = GPT(config)
    for name, parameter in model.named_parameters():
        # Rounded as in the folder: the check is of the conversion, not of the rounding.
        weights = reader.read(name)
        parameter.data = weights.to(dtype or weights.dtype).float()
    length = min(64, config.block_size)
    tokens = torch.randint(config.vocab_rows, (1, length), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, length], dtype=torch.int32)
    with torch.no_grad():
        ours = model(tokens, torch.arange(length)[None], Documents(bounds, length))
        difference = (ours - llama(tokens).logits).abs().max().item()
    tolerance = LOGITS_TOLERANCE * max(1.0, ours.std().item())
    if not difference < tolerance:
        raise InputError(f"--check: logits differ by {difference:.2e}, more than {tolerance:.2e}")
    print(f"check: transformers gives the same token ids, and logits within {difference:.1e}")


def _losses(checkpoint: Path, state: dict[str, Any]) -> dict[str, float | None]:
    """Mean training loss of the last 100 steps, and last validation loss, up to the checkpoint."""
    path = checkpoint.parent / "metrics.csv"
    rows = read_metrics(path) if path.is_file() else []
    rows = [row for row in rows if (row["step"] or math.inf) <= state["step"]]
    losses = [row["loss"] for row in rows[-100:] if row["loss"] is not None and not row["skipped"]]
    validations = [row["val_loss"] for row in rows if row["val_loss"] is not None]
    return {
        f"training loss (mean of the last {len(losses)} steps)": fmean(losses) if losses else None,
        "validation loss": validations[-1] if validations else None,
    }


if __name__ == "__main__":
    run_command(ConvertOptions, main)
