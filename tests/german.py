"""A seeded generator of text that looks like German."""

import random
from collections.abc import Iterator

_STEMS = (
    "arbeit bahn brücke denk fahr garten grün hand haus jahr kind land luft macht mutter nacht öffn raum "
    "recht schule sprach stadt straße tag über vater wald wasser weg welt wetter wort zeit zimmer zug"
)
_SMALL = "der die das und in zu nicht ist von mit sich auf für ein eine dem den im auch als an es"
_ENDINGS = ["", "e", "en", "er", "lich", "ung", "heit", "chen", "keit", "ig"]


def german_texts(n_documents: int, seed: int) -> Iterator[str]:
    """Texts of very uneven length, from one line to a few pages, whose next word can be guessed in part."""
    rng = random.Random(seed)
    stems, small = _STEMS.split(), _SMALL.split()
    for _ in range(n_documents):
        paragraphs = []
        for _ in range(1 + int(rng.paretovariate(1.5)) % 12):
            words = []
            for _ in range(rng.randint(4, 60)):
                stem = rng.choice(stems)
                compound = stem.capitalize() + rng.choice(stems) * rng.randint(0, 1) + rng.choice(_ENDINGS)
                words += [rng.choice(small), compound if rng.random() < 0.6 else stem + rng.choice(_ENDINGS)]
            paragraphs.append(" ".join(words).capitalize() + rng.choice(".!?…"))
        yield "\n\n".join(paragraphs)
