"""Remove what an extraction left of HTML: tags, comments, scripts and character references.

Removed are tags of a closed list in true syntax, from a text that uses them and does not speak of HTML. So
`<T>`, `a < b`, `<name@example.org>` and placeholders such as `<code>` without a `</code>` stay.
"""

import html
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from html.entities import name2codepoint

_PARAGRAPHS = "blockquote center dl fieldset form h1 h2 h3 h4 h5 h6 hr ol p pre table ul"
_LINES = """
    address article aside body br caption dd details dir div dt figcaption figure footer head header html
    legend li main nav section summary tbody tfoot thead title tr
"""
_CELLS = "td th"
_IN_LINES = """
    a abbr acronym area audio b base big button cite code col del dfn em embed font i iframe img input ins kbd
    label link map mark meta nobr noscript object option param q s samp select small source span strike strong
    sub sup svg textarea tt u var video wbr
"""
_LINE_ENDS = dict.fromkeys(_PARAGRAPHS.split(), 2) | dict.fromkeys(_LINES.split(), 1)
"""How many line ends a browser shows at least before and after these elements."""
_NAMES = {*_LINE_ENDS, *_CELLS.split(), *_IN_LINES.split()}
_NEVER_CLOSED = {"br", "hr", "wbr"}
_OFTEN_NOT_CLOSED = {"p", "li", "dd", "dt", "td", "th", "tr"}


def _one_of(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=lambda name: (-len(name), name)))


# Atomic groups, and no "<" inside a tag: each character is read once, whatever the text.
_ATTRIBUTE = (
    r"""(?>\s+[a-z][\w:.-]*\s*=\s*(?>"[^"<>]*"|'[^'<>]*'|[^\s"'<>=]+)|\s+(?:checked|noshade|nowrap))"""
)
_TAG = rf"(?:/(?:{_one_of(_NAMES)})\s*|(?:{_one_of(_NAMES)}){_ATTRIBUTE}*+\s*/?)>"
_UNSEEN = r"(?:!--[^-<]*+(?:(?!-->|<!--)[-<][^-<]*+)*+-->|!doctype\b[^<>]*>|{scripts})".format(
    scripts="|".join(
        rf"{name}\b[^<>]*>[^<]*+(?:<(?!/?{name}\b)[^<]*+)*+</{name}\s*>" for name in ("script", "style")
    )
)
_MARKUP = re.compile(rf"<(?=[a-z/!])(?:{_TAG}|(?P<unseen>{_UNSEEN}))", re.IGNORECASE)
_NAME = re.compile(r"</?(\w+)")

# Behind the first "&" of each pattern: what begins with one character is found fast.
_AMP = "(?:amp|#0*38|#[xX]0*26);"
_LT = rf"(?:{_AMP})*+(?:lt|#0*60|#[xX]0*3[cC]);"
_GT = rf"(?:{_AMP})*+(?:gt|#0*62|#[xX]0*3[eE]);"
_TAG_BEGINS = rf"(?:/?(?:{_one_of({*_NAMES, 'script', 'style'})})\b|!--|!doctype\b)"
_ESCAPED_TAG = rf"{_LT}{_TAG_BEGINS}(?:[^<>&]++|&(?!{_LT}|{_GT}))*+&{_GT}|{_LT}(?={_TAG_BEGINS})"
_REFERENCE = (
    r"(?<![=(]&)(?<![=(] &)(?<!return &)"  # the address of a variable in C
    rf"(?:{_AMP})*(?P<reference>(?:{_one_of([*name2codepoint, 'apos'])}|#\d{{1,7}}|#[xX][\da-fA-F]{{1,6}});)"
)
_REFERENCES = re.compile(rf"&(?:(?P<tag>(?i:{_ESCAPED_TAG}))|{_REFERENCE})")

_QUOTE = "[\"'`´„“”‚‘’»«›‹]"
# An opening quotation mark: “Ja.”<br>“Nein.” is dialogue.
_SPOKEN_OF = re.compile(rf"(?<![^\s(]){_QUOTE}(?:<{_TAG}|&#?\w+;){_QUOTE}|<[a-z]\w*>-[A-Z]")
_ABOUT = re.compile(
    r"\b(?:X?HTML|XML|SGML|CSS|PHP|JSP|DTD|DocBook|Java[Ss]cript|Markup|Quelltext|Quellcode)|(?<![./\w-])html\b"
)


def remove_html_remains(text: str) -> str:
    """The text as a browser would show it, as far as it has remains of HTML.

    A text about HTML stays as it is. Escaped tags (`&lt;b&gt;`) stay escaped: they are what the author wrote.
    The same object is returned where nothing remains.
    """
    shown = text
    if "<" in text:
        shown = _without_markup(text)
    if "&" in text:
        shown = _REFERENCES.sub(_character, shown)
    return text if shown == text or _SPOKEN_OF.search(text) or _ABOUT.search(shown) else shown


def _character(found: re.Match[str]) -> str:
    return found[0] if found["tag"] else _decoded(found["reference"]) or found[0]


@lru_cache(maxsize=4096)
def _decoded(reference: str) -> str:
    """The character of `auml;`, empty if it is none that a text may have."""
    character = html.unescape(f"&{reference}")
    is_control = unicodedata.category(character[:1] or "\0") == "Cc" and not character.isspace()
    return "" if is_control or character == "\ufffd" else character


def _tags(text: str) -> Iterable[tuple[re.Match[str], str, bool]]:
    """Each piece of markup with its name, in lower case and empty for what is never seen, and whether it ends
    an element."""
    for found in _MARKUP.finditer(text):
        name = "" if found["unseen"] else _NAME.match(found[0])[1].lower()  # type: ignore[index]
        yield found, name, found[0].startswith("</")


def _without_markup(text: str) -> str:
    """The text without its tags if it uses any: an element with its end, a line break, a comment."""
    opened: set[str] = set()
    closed: set[str] = set()
    for _, name, is_end in _tags(text):
        (closed if is_end else opened).add(name)
    if opened.isdisjoint(closed | _NEVER_CLOSED | {""}):
        return text
    bare = closed | _NEVER_CLOSED | _OFTEN_NOT_CLOSED | {""}
    shown = _Shown()
    place = 0
    for found, name, is_end in _tags(text):
        if is_end or name in bare or "=" in found[0]:
            shown.add(text[place : found.start()])
            shown.end_lines(name)
            if name in _CELLS.split() and not is_end:
                shown.next_cell()
            place = found.end()
    shown.add(text[place:])
    return shown.text()


class _Shown:
    """Text as a browser shows it: what stands between elements gets the line ends that they need."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._wanted = 0
        self._breaks = 0

    def add(self, text: str) -> None:
        if self._wanted:
            seen = text.lstrip()
            self._wanted = max(self._wanted, text.count("\n", 0, len(text) - len(seen)))
            if not seen:
                return
            if self._pieces:
                self._pieces.append("\n" * self._wanted)
            self._wanted = self._breaks = 0
            text = seen
        if text:
            self._pieces.append(text)

    def end_lines(self, name: str) -> None:
        if not (wanted := _LINE_ENDS.get(name, 0)):
            return
        self._breaks += name == "br"
        while not self._wanted and self._pieces:
            last = self._pieces.pop()
            kept = last.rstrip()
            wanted = max(wanted, last.count("\n", len(kept)))
            if kept:
                self._pieces.append(kept)
                break
        self._wanted = max(self._wanted, self._breaks, wanted)

    def next_cell(self) -> None:
        if not self._wanted and self._pieces and not self._pieces[-1][-1].isspace():
            self._pieces.append("\t")

    def text(self) -> str:
        return "".join(self._pieces)
