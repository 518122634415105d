"""Measure tokens per word over a sample of documents, and propose limits for clean.py.

Prose of one language lies in a narrow range; guitar chords, tables, code, noise and other languages take more
tokens per word, menus of common words fewer. The proposed limits lie `deviations` robust standard deviations
from the median, on a logarithmic scale.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data_prep.reading.documents import TEXT_FIELDS, sample_texts
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import Rejects
from data_prep.stages.pipeline import write_json
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.option_types import NonNegativeFloat, NonNegativeInt, PositiveFloat
from lit_gpt.store.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Options:
    """Plot tokens per word over a sample of documents and propose limits."""

    input: list[str]
    """Files or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet."""
    tokenizer: Path
    """Folder of the tokenizer."""
    output: Path
    """Folder for token_ratio.png and token_ratio.json."""
    sample_mb: PositiveFloat = 50.0
    """Text to measure, in 10^6 bytes: the beginning of each file, in proportion to its size."""
    min_words: NonNegativeInt = 50
    """Leave out shorter documents; their ratio says little."""
    deviations: NonNegativeFloat = 3.0
    """Distance of the limits from the median, in robust standard deviations."""
    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""


class Proposal(NamedTuple):
    """Limits for tokens per word, and the share of the sample that they would drop."""

    min_tokens_per_word: float
    max_tokens_per_word: float
    middle: float
    documents_dropped: float
    bytes_dropped: float


def main(options: Options) -> None:
    tokenizer = Tokenizer.load(options.tokenizer)
    files = find_files(options.input)
    look_into(files, options.text_fields, ())
    texts = sample_texts(files, options.sample_mb * 1e6, Rejects(), options.text_fields)
    ratios, sizes, examples = [], [], []
    for text in progress(texts, description="encode", unit=" documents"):
        n_words = len(text.split())
        if n_words >= options.min_words:
            ratios.append((len(tokenizer.encode([text])[0]) - 2) / n_words)
            sizes.append(len(text.encode()))
            examples.append(text[:80])
    if not ratios:
        raise InputError(f"no document of the sample has --min_words {options.min_words}")
    proposal = propose(np.array(ratios), np.array(sizes), options.deviations)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "token_ratio.json", proposal._asdict() | {"documents": len(ratios)})
    plot(np.array(ratios), proposal, options.output / "token_ratio.png")
    print(
        f"--min_tokens_per_word {proposal.min_tokens_per_word} "
        f"--max_tokens_per_word {proposal.max_tokens_per_word}\n"
        f"would drop {proposal.documents_dropped:.2%} of {len(ratios):,} documents of {options.min_words} "
        f"words and more, {proposal.bytes_dropped:.2%} of their bytes; the middle is {proposal.middle}"
    )
    for title, place in (("lowest", 0), ("highest", -1)):
        print(f"{title}: {examples[np.argsort(ratios)[place]]!r}")
    print(f"{options.output / 'token_ratio.png'}")


def propose(ratios: np.ndarray, sizes: np.ndarray, deviations: float) -> Proposal:
    """Limits around the median of `ratios` (n_documents,), by their median absolute deviation."""
    logs = np.log(ratios)
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle)) * deviations
    low, high = np.round(np.exp([middle - spread, middle + spread]), 2)
    dropped = (ratios < low) | (ratios > high)
    return Proposal(
        float(low),
        float(high),
        round(float(np.exp(middle)), 3),
        round(float(dropped.mean()), 5),
        round(float(sizes[dropped].sum() / sizes.sum()), 5),
    )


def plot(ratios: np.ndarray, proposal: Proposal, path: Path) -> None:
    """Histogram of `ratios` (n_documents,) with the proposed limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="tight")
    axes = figure.subplots()
    edges = np.geomspace(max(ratios.min(), 0.1), ratios.max() * 1.001, 120)
    axes.hist(ratios, bins=edges.tolist(), color="#4a7ba6")
    for limit in proposal[:2]:
        axes.axvline(limit, color="#b03030", linestyle="--", label=f"{limit}")
    axes.set(xscale="log", yscale="log", xlabel="tokens per white-space word", ylabel="documents")
    axes.legend(title="proposed limits")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(Options, main)
