"""Characters that are invisible or reorder text when displayed: pages show their names instead."""

import unicodedata

_CATEGORIES = {"Cc", "Cn", "Co", "Cs"}  # controls, unassigned, private use, halves of surrogate pairs
_REORDER = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_HIDDEN = frozenset(
    "\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028\u2029\u3164\ufeff\uffa0"
    + "".join(map(chr, [*range(0x2060, 0x2070), *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]))
)


def is_hidden(character: str) -> bool:
    """Whether a character is not seen, or reorders what is seen (marks of direction, "bidi").

    Not line feeds and tabs, nor joiners, which scripts and emoji need.
    """
    return character not in "\n\t" and (
        unicodedata.category(character) in _CATEGORIES
        or unicodedata.bidirectional(character) in _REORDER
        or character in _HIDDEN
    )
