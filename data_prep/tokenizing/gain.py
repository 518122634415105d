"""What an extension gains: tokens per word over the number of new tokens, as a table and a picture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data_prep.tokenizing.continued_bpe import merges_of
from lit_gpt.store.tokenizer import Tokenizer, read_definition

_POINTS = 10


class Point(NamedTuple):
    """A size of the vocabulary and what it costs."""

    new_tokens: int
    tokens_per_word: float


def sizes_of(n_new_tokens: int) -> list[int]:
    """Numbers of new tokens to compare, from none to all."""
    return sorted({round(n_new_tokens * step / _POINTS) for step in range(_POINTS + 1)})


def parts_of_new(tokenizer: Tokenizer, n_new: int) -> list[tuple[int, int]]:
    """The two ids that each new token is merged of: the last `n_new` merges of a tokenizer."""
    definition, _ = read_definition(tokenizer.folder)
    ids = definition["model"]["vocab"]
    return [(ids[left], ids[right]) for left, right in merges_of(definition)[-n_new:]] if n_new else []


def n_tokens(
    counts: Mapping[int, int], parts: Sequence[tuple[int, int]], first_new_id: int, kept: int
) -> int:
    """Number of tokens if only the first `kept` new tokens were there.

    New tokens are merged in their order, so without the later ones each of these is the two it is merged of.

    Args:
        counts: how often each id occurs in the encoding by all.
        parts: the two ids that each new token is merged of, in the order of their ids.
    """
    lengths: list[int] = []  # of each new token, in tokens that are kept
    for number, pair in enumerate(parts):
        of_parts = (lengths[part - first_new_id] if part >= first_new_id else 1 for part in pair)
        lengths.append(1 if number < kept else sum(of_parts))
    new = range(first_new_id, first_new_id + len(parts))
    return sum(
        count * (lengths[token - first_new_id] if token in new else 1) for token, count in counts.items()
    )


def curve(
    counts: Counter[int], parts: Sequence[tuple[int, int]], first_new_id: int, n_words: int
) -> list[Point]:
    """Tokens per word with the first 0, 10%, ... 100% of the new tokens; arguments as in `n_tokens`."""
    return [
        Point(kept, round(n_tokens(counts, parts, first_new_id, kept) / n_words, 4))
        for kept in sizes_of(len(parts))
    ]


def table(points: Sequence[Point]) -> str:
    """Markdown, a line for each size."""
    before = points[0].tokens_per_word
    rows = ["| new tokens | tokens per word | change |", "|---|---|---|"]
    for size, value in points:
        rows.append(f"| {size:,} | {value:.3f} | {value / before - 1:+.1%} |")
    return "\n".join(rows)


def plot(
    curves: Mapping[str, Sequence[Point]], path: Path, levels: Mapping[str, float] | None = None
) -> None:
    """Draw tokens per word over new tokens, and `levels` as horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="tight")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    for name, value in (levels or {}).items():
        axes.axhline(value, color="grey", linestyle="--")
        axes.annotate(name, (0, value), xytext=(0, 3), textcoords="offset points")
    axes.set(xlabel="new tokens", ylabel="tokens per white-space word, held-out text")
    axes.set_ylim(bottom=min(1.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
