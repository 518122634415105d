"""What prepare.py keeps of a made crawl by kind of page, and what one pass of all rules kept before.

python -m tests.data_prep.kept_by_kind 5 prints the table of docs/data_prep.md for the crawl of seed 5.
"""

import sys
import tempfile
from pathlib import Path

from data_prep import prepare
from data_prep.filters import clean
from data_prep.stages.pipeline import run_stages
from tests.data_prep.corpus_tools import documents, write_jsonl
from tests.data_prep.made_crawl import Crawl, by_kind
from tests.data_prep.made_pages import KINDS

SITES, PAGES = 12, 60
AT_ONCE = {
    "preset": "fineweb2_german",
    "min_alpha_words_frac": 0.7,
    "max_bad_chars_frac": 0.001,
    "min_letters_frac": 0.8,
    "min_stop_words_frac": 0.06,
    "min_language_score": 0.0,
}
"""The preset `german` before languages were identified: all rules in one pass of clean.py."""


def run_at_once(files: list[Path], output: Path) -> list[dict]:
    """What clean.py keeps by the limits of before."""
    options = clean.Options(input=[], output=output, workers=1, **AT_ONCE)
    run_stages(clean.plan(files, options, output), options, output, Path("-"))
    return documents(output / "documents")


def run_in_steps(files: list[Path], output: Path, **given) -> list[dict]:
    """What the stages of prepare.py keep."""
    options = prepare.Options(input=list(map(str, files)), output=output, workers=1, **given)
    stages, kept = prepare.corpus_stages(files, options)
    run_stages(stages, options, output, Path("-"))
    return documents(kept[0].parent)


def table(seed: int) -> str:
    """Markdown: pages made and kept of each kind."""
    pages = Crawl(seed).pages(SITES, PAGES)
    with tempfile.TemporaryDirectory() as folder:
        file = write_jsonl(Path(folder) / "pages.jsonl", pages)
        made, before, after = map(
            by_kind,
            (
                pages,
                run_at_once([file], Path(folder) / "at once"),
                run_in_steps([file], Path(folder) / "in steps"),
            ),
        )
    rows = [f"| {kind} | {made[kind]} | {before[kind]} | {after[kind]} |" for kind in KINDS]
    head = "| kind of page | made | kept before | kept |\n|---|---:|---:|---:|"
    return "\n".join([head, *rows])


if __name__ == "__main__":
    print(table(int(sys.argv[1])))
