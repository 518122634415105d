"""Draw documents from hand-written passages, with a seed.

Each file of a folder is one register. `[text]` holds documents, separated by lines of `---`; every other
section is a rule with one choice per line. In a document, `{rule}` stands for a choice and `{3..90}` for a
number; `{rule#x}` is the same choice everywhere in the document, `{rule.2}` is the second of a line's
forms, which are separated by " / ", and `{^rule}` begins with a capital. The rules of woerter.txt are
available to every register. A document without slots is written once, as it is. No document is written
twice.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.errors import InputError

PASSAGES = Path(__file__).resolve().parent / "sample_passages"
CONVERSATIONS = PASSAGES / "conversations"
SHARED = "woerter"
SLOT = re.compile(
    r"\{(?P<capital>\^?)(?:(?P<low>\d+)\.\.(?P<high>\d+)|(?P<rule>\w+))(?:#(?P<tag>\w+))?(?:\.(?P<form>\d))?\}"
)
BETWEEN_FORMS = " / "
MAX_REPEATS_IN_A_ROW = 10_000


@dataclass
class Register:
    """The documents of one file and the rules they may use."""

    name: str
    templates: list[str]
    rules: dict[str, list[str]]


def documents(seed: int, registers: list[Register]) -> Iterator[tuple[str, str]]:
    """Yield (register, text) without end: first every passage, then filled templates.

    Raises:
        InputError: the templates yield nothing new.
    """
    rng = random.Random(seed)
    texts = [(register, text) for register in registers for text in register.templates]
    once = [entry for entry in texts if not SLOT.search(entry[1])]
    rng.shuffle(once)
    yield from ((register.name, text) for register, text in once)
    templates = [entry for entry in texts if SLOT.search(entry[1])]
    written: set[str] = set()
    repeats = 0
    while repeats < MAX_REPEATS_IN_A_ROW:
        register, template = rng.choice(templates)
        text = Filling(register.rules, rng).fill(template)
        repeats = repeats + 1 if text in written else 0
        if repeats == 0:
            written.add(text)
            yield register.name, text
    raise InputError(f"the passages give no more than {len(once) + len(written)} documents; ask for less")


def load_registers(folder: Path) -> list[Register]:
    """The registers of a folder, sorted by name."""
    files = {path.stem: _read_sections(path) for path in sorted(folder.glob("*.txt"))}
    shared = files.pop(SHARED)
    return [_register(name, shared, rules) for name, rules in files.items()]


def load_conversations() -> list[Register]:
    """The registers of conversations, which have the rules of their namesakes among the passages besides."""
    passages = {register.name: register.rules for register in load_registers(PASSAGES)}
    files = sorted(CONVERSATIONS.glob("*.txt"))
    return [_register(path.stem, passages[path.stem], _read_sections(path)) for path in files]


def _register(name: str, known: dict[str, list[str]], rules: dict[str, list[str]]) -> Register:
    return Register(name, "\n".join(rules.pop("text")).strip().split("\n---\n"), known | rules)


def _read_sections(path: Path) -> dict[str, list[str]]:
    """Lines by section; blank lines are kept in documents only."""
    sections: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif not line.startswith("#") and (line or section == "text"):
            sections.setdefault(section, []).append(line)
    return sections


class Filling:
    """Fills the slots of one document, or of several that shall have few choices in common."""

    def __init__(self, rules: dict[str, list[str]], rng: random.Random) -> None:
        self._rules = rules
        self._rng = rng
        self._undrawn: dict[str, list[str]] = {}
        self._tagged: dict[tuple[str, str], str] = {}

    def fill(self, template: str) -> str:
        """The document; slots inside of choices are filled too."""
        return SLOT.sub(self._slot, template)

    def _slot(self, slot: re.Match[str]) -> str:
        if slot["low"]:
            return str(self._rng.randint(int(slot["low"]), int(slot["high"])))
        line = self._tagged.get((slot["rule"], slot["tag"])) or self._draw(slot["rule"])
        if slot["tag"]:
            self._tagged[slot["rule"], slot["tag"]] = line
        text = self.fill(line.split(BETWEEN_FORMS)[int(slot["form"] or 1) - 1])
        return text[0].upper() + text[1:] if slot["capital"] else text

    def _draw(self, rule: str) -> str:
        """Draw a line of the rule, without repeats until all have been drawn."""
        if not self._undrawn.get(rule):
            lines = list(self._rules[rule])
            self._undrawn[rule] = self._rng.sample(lines, len(lines))
        return self._undrawn[rule].pop()
