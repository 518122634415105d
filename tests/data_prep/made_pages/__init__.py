"""Bodies of made web pages, by kind: lines of text from the words and sentences of this folder's files."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.passages import Filling, load_registers

_REGISTERS = {register.name: register for register in load_registers(Path(__file__).parent)}


class Bodies:
    """Draws bodies of pages.

    Args:
        rng: of everything drawn.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._fillings = {name: Filling(register.rules, rng) for name, register in _REGISTERS.items()}

    def draw(self, kind: str) -> list[str]:
        """Lines of a new body."""
        return list(KINDS[kind](self))

    def _fill(self, register: str, template: str) -> str:
        return self._fillings[register].fill(template)

    def _many(self, register: str, template: str, low: int, high: int) -> list[str]:
        return [self._fill(register, template) for _ in range(self._rng.randint(low, high))]

    def _paragraphs(self, register: str, low: int, high: int) -> list[str]:
        number = self._rng.randint(low, high)
        return [" ".join(self._many(register, "{satz}", 3, 5)) for _ in range(number)]

    def prose(self) -> list[str]:
        return self._paragraphs("prosa", 3, 8)

    def in_language(self, register: str) -> list[str]:
        return self._paragraphs(register, 2, 4)

    def short_prose(self) -> list[str]:
        return self._paragraphs("prosa", 2, 2)

    def quotations(self) -> list[str]:
        """German that quotes a sentence of English twice."""
        lines = self._paragraphs("prosa", 5, 8)
        for place in self._rng.sample(range(len(lines)), 2):
            lines[place] += f" „{self._fill('englisch', '{satz}')}“, stand in dem Brief."
        return lines

    def dialogue(self) -> Iterator[str]:
        begin, end, dash = self._rng.choice([("»", "«", ""), ("„", "“", ""), ("", "", "– ")])
        for _ in range(self._rng.randint(8, 16)):
            question, answer = self._fill("prosa", "{frage}"), self._fill("prosa", "{antwort}")
            yield f"{dash}{begin}{question}{end}"
            said = self._fill("prosa", ", sagte {wer}." if begin else "")
            yield f"{dash}{begin}{answer.removesuffix('.')}{end}{said}"

    def forum(self) -> Iterator[str]:
        """Posts of few members, each with a signature; some quote the one before."""
        names = [self._fill("prosa", "{stadt}er{1..99}") for _ in range(4)]
        signatures = {name: self._fill("prosa", "{^wie} {wo}, {wie} {wann}") for name in names}
        last = ""
        for hour in range(9, self._rng.randint(13, 21)):
            name = self._rng.choice(names)
            yield self._fill("prosa", f"{name} schrieb am {{1..28}}.{{1..12}}.2011 um {hour} Uhr:")
            if last and self._rng.random() < 0.5:
                yield f"> {last}"
            last = self._fill("prosa", "{satz}")
            yield " ".join([last, self._fill("prosa", "{frage}"), self._fill("prosa", "{antwort}")])
            yield from ["-- ", signatures[name], ""]

    def _verse(self, template: str, n_lines: int) -> list[str]:
        marks = self._rng.choice(["", ",", ",."])
        lines = [self._fill("lied", template) for _ in range(n_lines)]
        return [f"{line}{marks and marks[number % len(marks)]}" for number, line in enumerate(lines)]

    def song(self) -> Iterator[str]:
        """Verses, and after each the refrain, two to four times; some songs have short lines."""
        template, lines_more = self._rng.choice([("{zeile}", 0), ("{zeile}", 0), ("{kurz}", 4)])
        n_lines = self._rng.choice([4, 4, 6, 8]) + lines_more
        refrain = self._verse(template, self._rng.choice([2, 4, 4]))
        heading = self._rng.random() < 0.3
        yield from [self._fill("lied", "{^was} {dort}"), ""]
        for number in range(self._rng.randint(2, 4)):
            yield from [f"Strophe {number + 1}"] if heading else []
            yield from [*self._verse(template, n_lines), ""]
            yield from ["Refrain"] if heading else []
            yield from [*refrain, ""]

    def poem(self) -> Iterator[str]:
        yield from [self._fill("lied", "{^still} {dort}"), ""]
        n_lines = self._rng.choice([4, 4, 4, 6, 8])
        for _ in range(self._rng.randint(3, 7)):
            yield from [*self._verse("{zeile}", n_lines), ""]

    def recipe(self) -> Iterator[str]:
        yield self._fill("rezept", "{gericht} für {2..8} Personen")
        yield from self._rng.sample(["Zutaten:", "Man braucht"], 1) + self._many("rezept", "{zutat}", 5, 9)
        steps = self._many("rezept", "{schritt}", 4, 7)
        numbered = self._rng.random() < 0.5
        yield from [f"{number}. {step}" if numbered else step for number, step in enumerate(steps, 1)]

    def minutes(self) -> Iterator[str]:
        """Names, numbers and short items."""
        yield self._fill("protokoll", "Protokoll der Sitzung in {stadt} vom {1..28}. Mai {1990..2020}")
        yield f"Anwesend: {', '.join(self._many('protokoll', '{name}', 3, 9))}"
        items = self._many("protokoll", "{punkt}", 3, 6)
        yield from (f"{number}. {item}" for number, item in enumerate(items, 1))
        yield self._fill("protokoll", "Ende: {20..22} Uhr {10..55}. Für das Protokoll: {name}")

    def mixed(self, other: str) -> list[str]:
        """Half German, half of another language: one after the other, or in turns."""
        number = self._rng.randint(2, 5)
        halves = [self._paragraphs(name, number, number) for name in ("prosa", other)]
        self._rng.shuffle(halves)
        in_turns = [line for pair in zip(*halves, strict=True) for line in pair]
        return self._rng.choice([halves[0] + halves[1], in_turns])

    def _numbers(self, n: int) -> list[int]:
        return [self._rng.randint(1, 99) for _ in range(n)]

    def table(self) -> list[str]:
        row = self._rng.choice(["{} | {} | {} | {},{} | {} %", "{};{};{};{},{};{}", "{} {} {} {}:{} +{}"])
        cities = self._many("prosa", "{stadt}", 20, 60)
        return [row.format(city, *self._numbers(5)) for city in cities]

    def code(self) -> list[str]:
        lines = (
            "if (x{} == {}) {{ y[{}] += {}; }}",
            "for (int i = {}; i < {}; i++) {{ sum[{}] -= {}; }}",
            "    return self._get({}, key={}, n={}) + {}",
            '<td class="c{}" width="{}"><a href="p{}.html">{}</a></td>',
        )
        return [self._rng.choice(lines).format(*self._numbers(4)) for _ in range(30)]

    def spam(self) -> Iterator[str]:
        """The same few phrases again and again."""
        phrases = self._many("werbung", "{spam}", 1, 3)
        for number in range(self._rng.randint(6, 20)):
            yield f"{', '.join(self._rng.choices(phrases, k=2))}{self._rng.choice(['', f' {number}'])}"

    def seo(self) -> Iterator[str]:
        """A product and how to buy it, with one city after the other; then the cities again as links."""
        product, how = self._fill("werbung", "{produkt}"), self._fill("werbung", "{eigenschaft}")
        cities = self._many("prosa", "{stadt}", 8, 18)
        sentence = self._rng.choice(
            [
                "Sie wollen {p} in {s} {h} kaufen? Bei uns können Sie {p} in {s} {h} kaufen und sparen.",
                "{p} {s}: {p} {h} kaufen in {s} und Umgebung, {p} {h} vergleichen in {s}.",
                "Wer {p} {h} kaufen in {s} sucht, ist bei {p} {s} richtig: {p} in {s} {h} kaufen ist leicht.",
            ]
        )
        between = self._rng.choice(["", "", " {satz}"])
        sentences = [
            sentence.format(p=product, h=how, s=city) + self._fill("prosa", between) for city in cities
        ]
        step = self._rng.choice([1, 3, 99])
        yield from (" ".join(sentences[at : at + step]) for at in range(0, len(sentences), step))
        yield from (f"{product} {how} kaufen {city}" for city in cities)

    def links(self) -> list[str]:
        before = self._rng.choice(["", "- ", "» "])
        templates = ("{^ding}", "{^wo}", "{stadt} {100..999}", "{^wer} in {stadt}", "{^ding} ({2..99})")
        return [
            before + self._fill("prosa", self._rng.choice(templates))
            for _ in range(self._rng.randint(30, 60))
        ]

    def products(self) -> Iterator[str]:
        for _ in range(self._rng.randint(10, 30)):
            yield self._fill("werbung", "{ware} {art} {art}")
            yield f"{self._rng.randint(3, 300)},{self._rng.randint(10, 99)} €"
            yield from self._many("werbung", "{notiz}", 1, 3)

    def only_boilerplate(self) -> list[str]:
        return [f"zu {self._fill('prosa', '{wer.2}')} ({number})" for number in range(25)]


Draw = Callable[[Bodies], "Iterator[str] | list[str]"]
GOOD: dict[str, Draw] = {
    "prose": Bodies.prose,
    "short prose": Bodies.short_prose,
    "with quotations in English": Bodies.quotations,
    "dialogue": Bodies.dialogue,
    "forum": Bodies.forum,
    "song": Bodies.song,
    "poem": Bodies.poem,
    "recipe": Bodies.recipe,
    "minutes": Bodies.minutes,
}
DIALECTS: dict[str, Draw] = {
    "Bavarian": lambda bodies: bodies.in_language("bairisch"),
    "Swiss German": lambda bodies: bodies.in_language("schweizerdeutsch"),
}
"""German too, but the model is less certain of them."""
BAD: dict[str, Draw] = {
    "Low German": lambda bodies: bodies.in_language("niederdeutsch"),
    "English": lambda bodies: bodies.in_language("englisch"),
    "Dutch": lambda bodies: bodies.in_language("niederlaendisch"),
    "Danish": lambda bodies: bodies.in_language("daenisch"),
    "half English": lambda bodies: bodies.mixed("englisch"),
    "half Dutch": lambda bodies: bodies.mixed("niederlaendisch"),
    "half Danish": lambda bodies: bodies.mixed("daenisch"),
    "table": Bodies.table,
    "code": Bodies.code,
    "spam": Bodies.spam,
    "SEO": Bodies.seo,
    "list of links": Bodies.links,
    "list of products": Bodies.products,
    "only boilerplate": Bodies.only_boilerplate,
}
KINDS = GOOD | DIALECTS | BAD
