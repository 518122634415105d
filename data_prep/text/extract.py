"""Extract the main text of web pages by trafilatura: options and stages of extract.py, and of prepare.py."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from data_prep.stages.corpus import Call, CorpusDocument, open_corpus
from data_prep.stages.input_files import CorpusOptions, describe_inputs
from data_prep.stages.pipeline import ExecutionOptions, Stage
from data_prep.stages.summary import with_summary
from data_prep.text.sandbox import Crashed, Sandbox

MAX_PAGE_BYTES = 10_000_000
"""Longer pages are lists and logs."""
PAGE_SECONDS = 60.0
"""CPU time: far more than most pages of MAX_PAGE_BYTES take."""
_MUCH_MORE = 1.5
"""Times the text found. Trafilatura's own measure; with 2, a thread of two long posts loses one."""

AFTER: dict[str, Any] = {"source": "jsonl", "text_fields": None, "id_fields": None, "html_remains": False}
"""How clean.py reads the main texts: tags left in them are text, which the page shows to its readers."""


@dataclass(kw_only=True)
class Options(CorpusOptions, ExecutionOptions):
    """Extract the main text of web pages: WARC, WET and HTML files, or a field with HTML."""

    source: Literal["html"] = "html"
    """Layout of .jsonl and .parquet files: a field holds the HTML of a page."""


def plan(files: list[Path], options: Options, folder: Path) -> list[Stage]:
    """Stages that write the main text of the pages in `files` into `folder`.

    Raises:
        InputError: the folder was begun with other settings.
    """
    read, write = open_corpus(files, options, folder, {"extractor": f"trafilatura {version('trafilatura')}"})
    describe = Call("inputs", partial(describe_inputs, files, folder))
    stage = Stage("extract", [read, _extract, write, describe], options.n_tasks(len(files)), folder)
    return with_summary([stage], "Main text of web pages")


def main_text(html: str) -> str | None:
    """The main text of a page, a paragraph a line; None if none is found.

    Trafilatura may take the first post of a forum for the whole page, or miss its short posts. So where a
    third of the page is left out, two wider searches follow, and one that finds much more counts:
    `favor_recall`, then all articles or paragraphs. What they keep of menus is left to the later steps.
    """
    from trafilatura import baseline, html2txt  # takes half a second to import

    logging.disable()  # trafilatura reports each page without text
    text = _found(html)
    if text and len(html2txt(html)) > _MUCH_MORE * len(text):
        for search in (partial(_found, favor_recall=True), lambda page: baseline(page)[1]):
            if len(wider := search(html)) > _MUCH_MORE * len(text):
                text = wider
    return text.replace("\0", "").strip() or None


def _found(html: str, favor_recall: bool = False) -> str:
    """Text and comments, without lines that the text has: the posts of a forum may be found as both.

    `deduplicate` would let a page depend on those before it.
    """
    from trafilatura import bare_extraction

    found: Any = bare_extraction(html, favor_recall=favor_recall, include_comments=True, deduplicate=False)
    if found is None:
        return ""
    lines = (found.text or "").split("\n")
    held = set(lines)
    lines += [line for line in (found.comments or "").split("\n") if line not in held]
    return "\n".join(lines)


def _extract(data: Iterable[CorpusDocument], rank: int, world_size: int) -> Iterator[CorpusDocument]:
    """Replace HTML by its main text. Pages without any are dropped as they are."""
    with Sandbox(main_text, PAGE_SECONDS) as extract:
        for document in data:
            if not document.is_plain_text:
                document.text, document.excluded = _of_page(document.text, extract)
            yield document


def _of_page(html: str, extract: Sandbox) -> tuple[str, dict[str, Any] | None]:
    """(main text, None), or (the page, why it is dropped)."""
    if (n_bytes := len(html.encode())) > MAX_PAGE_BYTES:
        return html, {"reason": "page_too_long", "value": n_bytes, "limit": MAX_PAGE_BYTES}
    try:
        text = extract(html)
    except TimeoutError:
        return html, {"reason": "page_too_slow"}
    except Crashed:
        return html, {"reason": "page_crashes_extractor"}
    return (text, None) if text else (html, {"reason": "no_main_text"})
