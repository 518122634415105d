"""Measure the filters against datatrove's own on the same text, how often they decide alike, and clean.py.

python scripts/bench_filters.py --input 'crawl/*.jsonl.zst'
"""

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import fasttext_new
import orjson
from datatrove.data import Document
from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.lid import FT176LID

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.filters.clean import Filters, batches
from data_prep.filters.language import LanguageIdentifier
from data_prep.filters.limits import PRESETS
from data_prep.reading.documents import TEXT_FIELDS, sample_texts
from data_prep.reading.inputs import find_files
from data_prep.reading.rejects import Rejects
from lit_gpt.cli import run_command
from lit_gpt.option_types import PositiveFloat, PositiveInt
from scripts.bench.measurement import in_turns

UNITS = re.compile(r"[-/\\~@|+=]*\w(?:\S*\w)?(?:(?<=\d)\.)?|[-/\\~@|+=]+|\.+|[^\w\s]")
CLEAN = Path(__file__).parents[1] / "data_prep" / "clean.py"
MODULES = ("fineweb_quality_filter", "gopher_quality_filter", "gopher_repetition_filter")


@dataclass
class Options:
    """Measure filters: MB (10^6 bytes of UTF-8 text) a second of processor time.

    datatrove's filters get FineWeb2's limits for German, and words from the regular expression that defines
    ours: spaCy, which they use otherwise, takes many times as long. Languages are identified by the same
    library and model. clean.py is a process of its own, which starts, reads and writes.
    """

    input: list[str]
    """Files of documents."""
    sample_mb: PositiveFloat = 20.0
    """Text to measure with, in 10^6 bytes."""
    repeats: PositiveInt = 3
    """Number of measurements, in turns; the median counts."""


def main(options: Options) -> None:
    files = find_files(options.input)
    texts = [
        text for text in sample_texts(files, options.sample_mb * 1e6, Rejects(), TEXT_FIELDS) if text.strip()
    ]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    identifier = LanguageIdentifier(PRESETS["german"].language)
    theirs, theirs_too = "datatrove's filters", "datatrove's, languages"
    ways: dict[str, Callable[[list[str]], list[bool]]] = {
        theirs: datatrove_keeps,
        "fineweb2_german": partial(keeps, "fineweb2_german", None),
        "german": partial(keeps, "german", None),
        theirs_too: partial(datatrove_keeps, model=identifier.model),
        "german, languages": partial(keeps, "german", identifier),
    }
    decisions = {name: way(texts) for name, way in ways.items()}  # makes tables, and is not timed
    turns = {name: partial(cpu_seconds, way, texts) for name, way in ways.items()}
    turns |= {
        "clean.py": partial(clean_seconds, texts),
        "clean.py, to start": partial(clean_seconds, texts[:100]),
    }
    seconds = {name: statistics.median(each) for name, each in in_turns(turns, options.repeats).items()}
    for name in ways:
        other = theirs_too if "languages" in name else theirs
        same = sum(map(bool.__eq__, decisions[name], decisions[other])) / len(texts)
        ratio = seconds[other] / seconds[name]
        rate = megabytes / seconds[name]
        print(f"{name:22} {rate:6.2f} MB/s, {ratio:5.2f} x datatrove, {same:7.2%} decide alike")
    start = seconds["clean.py, to start"]
    print(
        f"{'clean.py':22} {megabytes / seconds['clean.py']:6.2f} MB/s; "
        f"{start:.2f} s to start, then {megabytes / (seconds['clean.py'] - start):.2f} MB/s"
    )


def clean_seconds(texts: list[str]) -> float:
    """Processor time of clean.py in one task, with the preset `german`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        file.write_bytes(b"\n".join(orjson.dumps({"text": text}) for text in texts))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        flags = ["--input", str(file), "--output", f"{folder}/out", "--tasks", "1"]
        subprocess.run([sys.executable, str(CLEAN), *flags], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_seconds(way: Callable[[list[str]], list[bool]], texts: list[str]) -> float:
    start = time.process_time()
    way(texts)
    return time.process_time() - start


def keeps(preset: str, identifier: LanguageIdentifier | None, texts: list[str]) -> list[bool]:
    """Whether our filters keep each text."""
    filters = Filters(PRESETS[preset], identifier)
    kept: list[bool] = []
    for batch in batches(texts, len):
        reasons = filters.reasons_against(batch, [{}] * len(batch), [0] * len(batch))
        kept += [reason is None for reason in reasons]
    return kept


def datatrove_keeps(texts: list[str], model: Path | None = None) -> list[bool]:
    """The same by datatrove's filters, the cheap ones first, and last by language if there is a model."""
    limits = PRESETS["fineweb2_german"]
    filters = [
        GopherQualityFilter(
            min_doc_words=limits.min_words,
            max_doc_words=limits.max_words,
            min_avg_word_length=0,
            max_avg_word_length=limits.max_avg_word_length,
            max_symbol_word_ratio=limits.max_symbols_frac,
            max_bullet_lines_ratio=limits.max_bullet_lines_frac,
            max_ellipsis_lines_ratio=limits.max_ellipsis_lines_frac,
            max_non_alpha_words_ratio=limits.min_alpha_words_frac,
            min_stop_words=limits.min_stop_words,
            stop_words=limits.stop_words,
        ),
        FineWebQualityFilter(
            line_punct_thr=0,
            short_line_thr=999,
            char_duplicates_ratio=limits.max_dup_line_chars_frac,
            new_line_ratio=limits.max_new_lines_per_word,
        ),
        GopherRepetitionFilter(
            dup_line_frac=limits.max_dup_lines_frac,
            dup_para_frac=0,
            dup_line_char_frac=0,  # FineWebQualityFilter looks at them
            dup_para_char_frac=0,
            top_n_grams=tuple(limits.max_top_ngram_frac.items()),
            dup_n_grams=tuple(limits.max_dup_ngram_frac.items()),
        ),
    ]
    names = [f"datatrove.pipeline.filters.{module}.split_into_words" for module in MODULES]
    split = mock.Mock(side_effect=lambda text, language: UNITS.findall(text))
    with mock.patch(names[0], split), mock.patch(names[1], split), mock.patch(names[2], split):
        kept = [all(each.filter(Document(text=text, id="")) is True for each in filters) for text in texts]
    if model is None:
        return kept
    identifier = FT176LID(["de"])
    identifier._model = fasttext_new.load_model(str(model))  # it would download lid.176.bin
    least = limits.min_language_score or 0.0
    pairs = zip(texts, kept, strict=True)
    return [keep and identifier.predict(Document(text=text, id=""))[1]["de"] > least for text, keep in pairs]


if __name__ == "__main__":
    run_command(Options, main)
