"""Compare settings of trafilatura on made pages: `python -m tests.data_prep.extraction_settings`."""

import logging
from collections.abc import Callable
from functools import partial

import trafilatura

from data_prep.text.extract import main_text
from tests.data_prep.web_pages import FORUMS, KINDS, PIECES, SURROUNDINGS, page, threads

SETTINGS: dict[str, Callable[[str], str | None]] = {
    "`extract.py`": main_text,
    "`favor_precision`": partial(trafilatura.extract, favor_precision=True),
    "the same without comments": partial(trafilatura.extract, favor_precision=True, include_comments=False),
    "default": trafilatura.extract,
    "`favor_recall`": partial(trafilatura.extract, favor_recall=True),
}


def main() -> None:
    """Print a table of pages of all kinds, and one of the posts of threads of many lengths."""
    logging.disable()
    print("| setting | pages with a menu or notice | texts lost | texts twice |\n|---|---:|---:|---:|")
    for name, extract in SETTINGS.items():
        surrounded = lost = twice = 0
        for kind, html in (KINDS | {"only a menu": page("")}).items():
            text = extract(html) or ""
            surrounded += any(word in text for word in SURROUNDINGS)
            found = [text.count(piece) for piece in PIECES.get(kind, ())]
            lost += found.count(0)
            twice += sum(count > 1 for count in found)
        print(f"| {name} | {surrounded} | {lost} | {twice} |")
    print("\n| setting |", " | ".join(FORUMS), "| posts twice | pages with a menu or notice |")
    print("|---|" + "---:|" * (len(FORUMS) + 2))
    for name, extract in SETTINGS.items():
        shares, twice, surrounded = [], 0, 0
        for kind in FORUMS:
            n_posts = kept = 0
            for html, posts in threads(kind):
                text = extract(html) or ""
                n_posts += len(posts)
                kept += sum(post in text for post in posts)
                twice += sum(text.count(post) > 1 for post in posts)
                surrounded += any(word in text for word in SURROUNDINGS)
            shares.append(f"{kept / n_posts:.0%}")
        print(f"| {name} |", " | ".join(shares), f"| {twice} | {surrounded} |")


if __name__ == "__main__":
    main()
