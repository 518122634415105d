"""A seeded crawl of made sites, whose pages share a notice, a menu and a footer; each is of a known kind.

python -m tests.data_prep.made_crawl DIR 30 writes files of about 30 MB in all.
"""

import random
import sys
from collections import Counter
from pathlib import Path

from tests.data_prep.corpus_tools import write_jsonl
from tests.data_prep.made_pages import BAD, DIALECTS, GOOD, Bodies

_STEMS = """
    arbeit bahn brücken denk fahr garten hafen hand haus jahr kinder land luft macht mutter nacht ofen raum
    recht schul sprach stadt straßen tage vater wald wasser wetter wort zeit zimmer zug markt mühlen dach uhr
"""
_HEADS = """
    buch fest hof kasten laden meister plan platz rat schein stein tisch turm weg zaun brief topf raum boot
"""
_NOTICE = (
    "Wir verwenden Cookies, um die Seite für Sie zu verbessern.",
    "Mit der Nutzung der Seite stimmen Sie dem zu...",
    "Alle akzeptieren",
    "Nur notwendige Cookies",
    "Einstellungen...",
)
_FOOTER = ("Impressum", "Datenschutz", "AGB", "Nach oben", "Alle Rechte vorbehalten", "Folgen Sie uns", "RSS")


class Crawl:
    """Pages of made sites.

    Args:
        seed: of everything drawn.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._bodies = Bodies(self._rng)

    def pages(self, n_sites, n_pages):
        """Documents with `id` `KIND/NUMBER` and `text`, in random order."""
        pages = []
        for site in range(n_sites):
            above, below = self._boilerplate(site)
            for _ in range(n_pages):
                kind = self._rng.choice([*GOOD, *GOOD, *DIALECTS, *BAD])
                text = "\n".join([*above, *self._bodies.draw(kind), *below])
                pages.append({"id": f"{kind}/{len(pages)}", "text": text})
        self._rng.shuffle(pages)
        return pages

    def _boilerplate(self, site):
        menu = [f"- {self._noun('zum')}" for _ in range(self._rng.randint(10, 50))]
        return [*_NOTICE, f"Seite {site} im Netz", *menu], [*_FOOTER, f"© Verein {site}"]

    def _noun(self, article):
        return f"{article} {self._rng.choice(_STEMS.split()).capitalize()}{self._rng.choice(_HEADS.split())}"


def near_copy(page):
    """Another document of the kind `near copy`: every paragraph ends with one word more."""
    lines = [f"{line} Nachtrag." if len(line) > 100 else line for line in page["text"].split("\n")]
    return {"id": f"near copy/{page['id']}", "text": "\n".join(lines)}


def by_kind(documents):
    """Number of documents of each kind."""
    return Counter(document["id"].partition("/")[0] for document in documents)


def write_files(folder, megabytes):
    """Write files of 20 sites each until they have so many 10^6 bytes; the number of a file is its seed."""
    size, seed = 0, 0
    while size < megabytes * 1e6:
        file = write_jsonl(folder / f"{seed:04d}.jsonl", Crawl(seed).pages(n_sites=20, n_pages=200))
        size += file.stat().st_size
        seed += 1


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), float(sys.argv[2]))
