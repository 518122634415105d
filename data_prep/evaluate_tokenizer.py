"""Compare tokenizers on held-out text: a table and a plot."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.reading.documents import TEXT_FIELDS, sample_texts
from data_prep.reading.inputs import find_files, look_into
from data_prep.reading.rejects import Rejects
from data_prep.stages.pipeline import write_json
from data_prep.tokenizing import gain
from data_prep.tokenizing.against_base import append, curve, load_others, n_unreachable
from data_prep.tokenizing.continued_bpe import Base
from lit_gpt.cli import InputError, progress, run_command
from lit_gpt.files import write_atomically
from lit_gpt.option_types import PositiveFloat
from lit_gpt.store.extension import Extension
from lit_gpt.store.tokenizer import Tokenizer


@dataclass(kw_only=True)
class Options:
    """Compare tokenizers on text that none of them was trained on."""

    input: list[str]
    """Files or globs of held-out text."""
    tokenizers: list[Path]
    """Folders of the tokenizers."""
    output: Path
    """Folder for tokenizers.json, tokenizers.md and tokenizers.png."""
    base: Path | None = None
    """Folder of an old tokenizer: those of --tokenizers that extend it are compared with the others' tokens
    appended to it; vocabulary.png shows tokens per word over the number of new tokens."""
    sample_mb: PositiveFloat = 20.0
    """Text to measure, in 10^6 bytes: the beginning of each file, in proportion to its size."""
    text_fields: list[str] = field(default_factory=lambda: list(TEXT_FIELDS))
    """Field that holds the text: the first of these that a document has."""


@dataclass
class Measures:
    name: str
    vocab_size: int
    tokens_per_word: float
    """Tokens per white-space word (fertility)."""
    bytes_per_token: float
    """UTF-8 bytes per token."""
    whole_words: float
    """Share of the words, with the space before them, that are a single token."""
    used_vocabulary: float
    """Share of the ids that occur."""
    unknown_per_million: float
    changed_texts: float
    """Share of the documents that decoding does not restore."""
    change: str | None = None
    """Of tokens per word against the base."""
    unreachable: int | None = None
    """New tokens that no text is encoded to."""


def main(options: Options) -> None:
    """Measure every tokenizer on the same texts; print and write the comparison."""
    files = find_files(options.input)
    look_into(files, options.text_fields, ())
    texts = list(sample_texts(files, options.sample_mb * 1e6, Rejects(), options.text_fields))
    if not any(text.split() for text in texts):
        raise InputError("no words in the sample: give other --input")
    base = Base(options.base) if options.base else None
    others, said = load_others(options.tokenizers, base) if base else ([], [])
    folders = [options.base, *options.tokenizers] if options.base else options.tokenizers
    measured = [
        measure(Tokenizer.load(folder), texts, name)
        for folder, name in zip(folders, row_names(folders), strict=True)
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    if base is not None:
        measured += compare_with_base(base, options.tokenizers, others, measured, texts, options.output)
    write_json(options.output / "tokenizers.json", _rows(measured))
    write_atomically(options.output / "tokenizers.md", table(measured))
    plot(measured, options.output / "tokenizers.png")
    print(table(measured), end="")
    for line in said:
        print(line)


def compare_with_base(
    base: Base,
    folders: list[Path],
    others: Sequence[Extension | Base | None],
    measured: list[Measures],
    texts: list[str],
    output: Path,
) -> list[Measures]:
    """Complete the rows of the base and of `folders`, draw the curves, and make rows for tokens appended."""
    sizes = (len(other.new_tokens) for other in others if isinstance(other, Extension))
    n_new = max(sizes, default=sys.maxsize)
    curves: dict[str, list[gain.Point]] = {}
    levels, appended = {}, []
    for folder, other, row in zip(folders, others, measured[1:], strict=True):
        if isinstance(other, Extension):
            tokenizer = Tokenizer.load(folder)
            contents = [tokenizer.token(token) or "" for token in other.new_tokens]
            _add_curve(curves, row, base, tokenizer, contents, texts)
            continue
        levels[row.name] = row.tokens_per_word
        if other is not None:
            with TemporaryDirectory() as temporary:
                tokenizer, contents = append(base, other, n_new, Path(temporary))
                appended.append(measure(tokenizer, texts, f"{row.name} appended"))
                _add_curve(curves, appended[-1], base, tokenizer, contents, texts)
    for row in [*measured[1:], *appended]:
        row.change = f"{row.tokens_per_word / measured[0].tokens_per_word - 1:+.1%}"
    gain.plot(curves, output / "vocabulary.png", levels)
    return appended


def _add_curve(
    curves: dict[str, list[gain.Point]],
    row: Measures,
    base: Base,
    tokenizer: Tokenizer,
    contents: list[str],
    texts: list[str],
) -> None:
    row.unreachable = n_unreachable(tokenizer, contents, base.byte_level)
    curves[row.name] = curve(base, tokenizer, len(contents), texts)


def row_names(folders: list[Path]) -> list[str]:
    """For each folder the shortest ending of its path that no other one has."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]  # a link keeps its name

    def ending(path: tuple[str, ...]) -> tuple[str, ...]:
        others = [other for other in paths if other != path]
        lengths = (n for n in range(1, len(path)) if all(other[-n:] != path[-n:] for other in others))
        return path[-next(lengths, len(path)) :]

    return [str(Path(*ending(path))) for path in paths]


def measure(tokenizer: Tokenizer, texts: list[str], name: str) -> Measures:
    """One tokenizer on the texts. Tokens are counted without BOS and EOS."""
    words = Counter(word for text in texts for word in text.split())
    n_words, n_tokens, n_changed = words.total(), 0, 0
    counts: Counter[int] = Counter()
    for text in progress(texts, description=name, unit=" documents"):
        ids = tokenizer.encode([text])[0][1:-1]
        n_tokens += len(ids)
        counts.update(ids.tolist())
        n_changed += tokenizer.decode(ids) != text
    whole = sum(count for word, count in words.items() if len(tokenizer.encode([f" {word}"])[0]) == 3)
    unknown = counts[tokenizer.unk_id] if tokenizer.unk_id is not None else 0
    return Measures(
        name=name,
        vocab_size=tokenizer.vocab_size,
        tokens_per_word=round(n_tokens / n_words, 4),
        bytes_per_token=round(sum(len(text.encode()) for text in texts) / n_tokens, 4),
        whole_words=round(whole / n_words, 4),
        used_vocabulary=round(len(counts) / tokenizer.vocab_size, 4),
        unknown_per_million=round(unknown / n_tokens * 1e6, 2),
        changed_texts=round(n_changed / len(texts), 5),
    )


def _rows(measured: list[Measures]) -> list[dict[str, Any]]:
    """Without the columns that no row has."""
    rows = [asdict(measures) for measures in measured]
    return [
        {name: value for name, value in row.items() if any(r[name] is not None for r in rows)} for row in rows
    ]


def table(measured: list[Measures]) -> str:
    """Markdown, one line a tokenizer."""
    values = _rows(measured)
    rows = [[name.replace("_", " ") for name in values[0]], ["---"] * len(values[0])]
    rows += [["" if value is None else str(value) for value in row.values()] for row in values]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def plot(measured: list[Measures], path: Path) -> None:
    """Bars of tokens per word, bytes per token, and words that are one token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.5 + 0.4 * len(measured)), layout="tight")
    panels = figure.subplots(1, 3, sharey=True)
    names = [measures.name for measures in measured]
    for axes, name in zip(panels, ("tokens_per_word", "bytes_per_token", "whole_words"), strict=True):
        bars = axes.barh(range(len(names)), [getattr(measures, name) for measures in measured])
        axes.bar_label(bars, fmt="%.3g", padding=2)
        axes.set(title=name.replace("_", " "), yticks=range(len(names)), yticklabels=names)
        axes.margins(x=0.2)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(Options, main)
