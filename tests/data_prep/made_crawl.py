"""A seeded crawl of made sites, whose pages share a notice, a menu and a footer; each is of a known kind."""

import random
from collections import Counter

GOOD = ("prose", "dialogue", "forum", "short prose")
BAD = ("table", "code", "spam", "english", "only boilerplate")

_STEMS = """
    arbeit bahn brücken denk fahr garten hafen hand haus jahr kinder land luft macht mutter nacht ofen raum
    recht schul sprach stadt straßen tage vater wald wasser wetter wort zeit zimmer zug markt mühlen dach uhr
"""
_HEADS = """
    buch fest hof kasten laden meister plan platz rat schein stein tisch turm weg zaun brief topf raum boot
"""
_VERBS = """
    findet sucht trägt vergisst beschreibt verkauft öffnet verspricht zeichnet repariert liest kennt
"""
_HOW = """
    alt laut leise neu grau klein fern müde froh schnell lang schwer gern selten heute bald dort
"""
_LINKS = """
    und weil als obwohl bevor während wie dass wenn nachdem
"""
_ENGLISH = """
    the house river was seen from every window and nobody had thought about its old stones before winter
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

    def pages(self, n_sites, n_pages):
        """Documents with `id` `KIND/NUMBER` and `text`, in random order."""
        pages = []
        for site in range(n_sites):
            above, below = self._boilerplate(site)
            for _ in range(n_pages):
                kind = self._rng.choice([*GOOD * 2, *BAD])
                body = getattr(self, "_" + kind.replace(" ", "_"))()
                pages.append({"id": f"{kind}/{len(pages)}", "text": "\n".join([*above, *body, *below])})
        self._rng.shuffle(pages)
        return pages

    def _boilerplate(self, site):
        menu = [f"- {self._noun('zum')}" for _ in range(self._rng.randint(10, 50))]
        return [*_NOTICE, f"Seite {site} im Netz", *menu], [*_FOOTER, f"© Verein {site}"]

    def _draw(self, words):
        return self._rng.choice(words.split())

    def _noun(self, article):
        return f"{article} {self._draw(_STEMS).capitalize()}{self._draw(_HEADS)}"

    def _sentence(self):
        first = f"{self._draw('In Mit Von')} {self._noun('dem')} {self._draw(_VERBS)} {self._noun('der')}"
        then = f"{self._draw(_HOW)} {self._noun('den')}, {self._draw(_LINKS)} {self._noun('der')}"
        return f"{first} {then} das {self._draw(_HOW)} {self._draw(_VERBS)}."

    def _paragraphs(self, low, high):
        return [" ".join(self._sentence() for _ in range(4)) for _ in range(self._rng.randint(low, high))]

    def _prose(self):
        return self._paragraphs(3, 8)

    def _short_prose(self):
        return self._paragraphs(2, 2)

    def _dialogue(self):
        return [f"»{self._sentence()}«, sagte sie. »{self._sentence()}«" for _ in range(8)]

    def _forum(self):
        return [f"Gast{self._rng.randint(100, 999)}: {self._sentence()} {self._sentence()}" for _ in range(9)]

    def _numbers(self, n):
        return [self._rng.randint(1, 99) for _ in range(n)]

    def _table(self):
        return ["Teil {} | {} | {},{} | {} %".format(*self._numbers(5)) for _ in range(30)]

    def _code(self):
        return ["if (x{} == {}) {{ y[{}] += 1; }} // {}".format(*self._numbers(4)) for _ in range(30)]

    def _spam(self):
        phrase = self._sentence().rstrip(".")
        return [f"{phrase}, {phrase} {number}" for number in range(9)]

    def _english(self):
        words = _ENGLISH.split()
        return [" ".join(self._rng.choices(words, k=60)) + "." for _ in range(4)]

    def _only_boilerplate(self):
        return [f"{self._noun('zum')} ({number})" for number in range(25)]


def by_kind(documents):
    """Number of documents of each kind."""
    return Counter(document["id"].partition("/")[0] for document in documents)
