"""Remove what an extraction left of HTML: tags, comments, scripts and character references.

Removed are tags of a closed list in true syntax, from a text that uses them and does not speak of HTML. So
`<T>`, `a < b`, `<name@example.org>` and placeholders such as `<code>` without a `</code>` stay.
"""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache
from html.entities import name2codepoint

_PARAGRAPHS = "blockquote center dl fieldset form h1 h2 h3 h4 h5 h6 hr ol p pre table ul"
_LINES = """
    address article aside body br caption dd details dialog dir div dt figcaption figure footer head header
    html legend li main nav section summary tbody tfoot thead title tr
"""
_CELLS = "td th"
_IN_LINES = """
    a abbr acronym area audio b base bdi bdo big button cite code col del dfn em embed font i iframe img input
    ins kbd label link map mark meta nobr noscript o:p object optgroup option param picture q rp rt ruby s
    samp select small source span strike strong sub sup svg textarea time track tt u var video wbr
"""
_WITHOUT_VALUE = """
    allowfullscreen async autofocus autoplay checked compact controls default defer disabled download hidden
    ismap itemscope loop multiple muted noresize noshade novalidate nowrap open playsinline readonly required
    reversed selected
"""
_LINE_ENDS = dict.fromkeys(_PARAGRAPHS.split(), 2) | dict.fromkeys(_LINES.split(), 1)
"""How many line ends a browser shows at least before and after these elements."""
_NAMES = {*_LINE_ENDS, *_CELLS.split(), *_IN_LINES.split()}
_NEVER_CLOSED = {"br", "hr", "wbr"}
_OFTEN_NOT_CLOSED = {"p", "li", "dd", "dt", "td", "th", "tr"}


def _one_of(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=lambda name: (-len(name), name)))


# Atomic groups, and no "<" inside a tag: each character is read once, whatever the text.
_VALUE = r"""(?>"[^"<]{0,2000}"|'[^'<]{0,2000}'|[^\s"'<>=][^\s"'<>]*)"""
_BARE = rf"\s++(?:{_one_of(_WITHOUT_VALUE.split())})(?![\w-])"
_ATTRIBUTE = rf"""(?>(?:\s++|(?<=["']))[a-z][\w:.-]*+\s*+=\s*+{_VALUE}|{_BARE})"""
_NAMED = rf"(?:{_one_of(_NAMES)})"
_REST = rf"{_ATTRIBUTE}*+\s*+(?:/\s*+)?>"
_UNSEEN = r"(?:!--[^-<]*+(?:(?!-->|<!--)[-<][^-<]*+)*+-->|!doctype\b[^<>]*>|{scripts})".format(
    scripts="|".join(
        rf"{name}\b[^<>]*>[^<]*+(?:<(?!/?{name}\b)[^<]*+)*+</{name}\s*>" for name in ("script", "style")
    )
)
_MARKUP = re.compile(
    rf"<(?=[a-z/!])(?:{_NAMED}(?:{_REST}|(?P<broken>(?=[\s/\"'])))|/{_NAMED}\s*+>|(?P<unseen>{_UNSEEN}))",
    re.IGNORECASE,
)
_NAME = re.compile(r"</?([\w:]+)")

_SMALL = re.compile(r"<(su[pb])\b[^<>]*>\s*([^\s<>]{1,20})\s*</\1\s*>", re.IGNORECASE)
_SIGNS = "0123456789+-−=()"
_RAISED = str.maketrans(f"{_SIGNS}in", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁱⁿ")
_LOWERED = str.maketrans(_SIGNS, "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")

# Behind the first "&" of each pattern: what begins with one character is found fast.
_AMP = "(?:amp|#0*38|#[xX]0*26);"
_LT = rf"(?:{_AMP})*+(?:lt|#0*60|#[xX]0*3[cC]);"
_GT = rf"(?:{_AMP})*+(?:gt|#0*62|#[xX]0*3[eE]);"
_TAG_BEGINS = rf"(?:/?(?:{_one_of({*_NAMES, 'script', 'style'})})\b|!--|!doctype\b)"
_ESCAPED_TAG = rf"{_LT}{_TAG_BEGINS}(?:[^<>&]++|&(?!{_LT}|{_GT}))*+&{_GT}|{_LT}(?={_TAG_BEGINS})"
_VARIABLES = """
    alpha and ang beta bull cap cent chi copy crarr cup delta diams empty epsilon equiv eta exist gamma hearts
    image int iota isin kappa lambda loz macr micro middot minus mu not nu omega or order para part perp phi
    pi prime prod prop psi real reg rho sect sigma sim sub sum sup tau theta times trade xi zeta
"""
_ADDRESS = rf"(?:(?<==&)|(?<== &)|(?<=return &))(?:{_AMP})*(?:{_one_of(_VARIABLES.split())});"
"""Of a variable in C. Behind a bracket there would be no semicolon."""
_REFERENCE = (
    rf"(?!{_ADDRESS})(?:{_AMP})*(?P<reference>"
    rf"(?:{_one_of([*name2codepoint, 'apos'])}|#\d{{1,7}}|#[xX][\da-fA-F]{{1,6}});)"
)
_REFERENCES = re.compile(rf"&(?:(?P<tag>(?i:{_ESCAPED_TAG}))|{_REFERENCE})")

_QUOTE = "[\"'`´„“”‚‘’»«›‹]"
_PAIRS = ('"', "„“”", "«»")
_SPOKEN_OF = re.compile(rf"(?<![^\s(]){_QUOTE}(?:</?{_NAMED}{_REST}|&#?\w+;){_QUOTE}|<[a-z]\w*>-[A-Z]")
_ABOUT = re.compile(
    r"\b(?:X?HTML|XML|SGML|CSS|PHP|JSP|DTD)(?![A-ZÄÖÜ](?![a-z]))"  # not CSSR
    r"|\b(?:DocBook|Java[Ss]cript|Markup|Quelltext|Quellcode)|(?<![./\w-])html\b"
)
_NOT_ABOUT = re.compile(  # what a forum or a page says of itself
    r"\bHTML(?:[- ]Codes?)?(?: ist| sind|:)? (?:an|aus|(?:nicht )?erlaubt|(?:de)?aktiviert)"
    r"(?=[ \t]*(?:[.,;)\n]|\Z))"
    r"|\bJava[Ss]cript(?: \w+){0,5} (?:de)?aktivier|\b[Aa]ktivier\w*(?: \w+){0,3} Java[Ss]cript\b"
)


def remove_html_remains(text: str, leave: Callable[[str], object] | None = None) -> str:
    """The text as a browser would show it, as far as it has remains of HTML.

    A text about HTML stays as it is, all of it: its examples stand in other paragraphs than what names them.
    Escaped tags (`&lt;b&gt;`) stay escaped: they are what the author wrote. The same object is returned where
    nothing remains.

    Args:
        leave: is told why a text with remains stays as it is.
    """
    shown = text
    if "<" in text:
        shown = _without_markup(text)
    if "&" in text:
        shown = _REFERENCES.sub(_character, shown)
    if shown == text:
        return text
    if _is_about_html(text, shown):
        if leave:
            leave("speaks of HTML")
        return text
    return shown


def _is_about_html(text: str, shown: str) -> bool:
    """Whether a text speaks of HTML, or has a piece of it in quotation marks.

    The first mark opens: an even number of its kind stands before it in the line.
    `"Ja "<br>"Nein"` is dialogue.
    """
    if _ABOUT.search(_NOT_ABOUT.sub("", shown)):
        return True
    place = 0
    n_before = dict.fromkeys(_PAIRS, 0)
    for found in _SPOKEN_OF.finditer(text):
        if (line_end := text.rfind("\n", place, found.start())) >= 0:
            place = line_end
            n_before = dict.fromkeys(_PAIRS, 0)
        for pair in _PAIRS:
            n_before[pair] += sum(text.count(mark, place, found.start()) for mark in pair)
        place = found.start()
        if not any(n_before[pair] % 2 for pair in _PAIRS if found[0][0] in pair):
            return True
    return False


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
    an element. The end of an element whose start is no true tag is left out."""
    goes: dict[str, list[bool]] = defaultdict(list)
    for found in _MARKUP.finditer(text):
        name = "" if found["unseen"] else _NAME.match(found[0])[1].lower()  # type: ignore[index]
        is_end = found[0].startswith("</")
        if is_end and goes[name] and not goes[name].pop():
            continue
        is_broken = found["broken"] is not None
        if not is_end:
            goes[name].append(not is_broken)
        if not is_broken:
            yield found, name, is_end


def _small(found: re.Match[str]) -> str:
    """`²` for `<sup>2</sup>`, `^2,5` for a number that has no such form; words and `[1]` as they are."""
    mark, forms = ("^", _RAISED) if found[1].lower() == "sup" else ("_", _LOWERED)
    text = found[2]
    shown = text.translate(forms)
    is_number = any(map(str.isdecimal, text))
    if not any(map(str.isascii, shown)) and (is_number or len(text) == 1):
        return shown
    return f"{mark}{text}" if is_number and text[0] not in "[(" else text


def _without_markup(text: str) -> str:
    """The text without its tags if it uses any: an element with its end, a line break, a comment."""
    opened: set[str] = set()
    closed: set[str] = set()
    for _, name, is_end in _tags(text):
        (closed if is_end else opened).add(name)
    if opened.isdisjoint(closed | _NEVER_CLOSED | {""}):
        return text
    bare = closed | _NEVER_CLOSED | _OFTEN_NOT_CLOSED | {""}
    text = _SMALL.sub(_small, text)
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
