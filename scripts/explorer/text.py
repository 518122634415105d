"""Text of unknown origin as it may be shown: React escapes markup, here is what it leaves."""

import html
import unicodedata

LINES = "\n\t"
MAX_TITLE = 120


def visible(text: str) -> str:
    """The text with characters that are not seen, or that reorder what is seen, as `⟨U+202E⟩`.

    Marks of direction (bidi), control characters and halves of surrogate pairs; line ends and tabs stay, and
    so do joiners, which scripts and emoji need.
    """
    return "".join(map(_visible, text.replace("\r\n", "\n")))


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    reorders = unicodedata.bidirectional(character) in _REORDER
    if character not in LINES and (category in ("Cc", "Cs") or reorders or character in _HIDDEN):
        return f"⟨U+{ord(character):04X}⟩"
    return character


_REORDER = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_HIDDEN = frozenset(
    "\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028\u2029\u3164\ufeff\uffa0"
    + "".join(map(chr, [*range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]))
)


def title(text: str, limit: int = MAX_TITLE) -> str:
    """The text in one line of at most `limit` characters."""
    line = " ".join(visible(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def for_plot(text: str) -> str:
    """A title for Plotly, which takes some markup in its own texts."""
    return html.escape(title(text), quote=False)
