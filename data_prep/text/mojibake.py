"""Repair mojibake: UTF-8 that was decoded as Windows-1252 or Latin-1, once or several times.

ftfy knows ten encodings and takes `»Änderung` for MacRoman. In German text these two suffice, so its result
counts for a line that has such a sequence and that it explains by them alone.
"""

import re
from collections.abc import Callable
from functools import lru_cache

import ftfy

_ENCODINGS = ("latin-1", "sloppy-windows-1252")
_CONFIG = ftfy.TextFixerConfig(decode_inconsistent_utf8=False)
_LONGEST = 1_000_000
"""Characters. ftfy takes 0.1 ms for a short line; in longer texts sequences are repaired one by one."""
_MOST_ROUNDS = 8
_LONGEST_KEPT = 100  # characters of a run whose result is kept for others

# What stands for the bytes 80 to BF, and what of it also stands behind a letter in sound text.
_ANY = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_APART = "\xa0«»‚„…‹‘’“”•–—›"
_STRICT = f"(?![{_APART}])[{_ANY}]"
_SMALL = "a-zß-öø-ÿ"
_SEQUENCES = (
    rf"[ÂÃÌ]{_STRICT}",
    rf"(?<=[{_SMALL}])[ÂÃÄÅ][{_APART}]",  # no capital letter stands behind a small one
    "Ã[‚„–]",  # Â, Ä, Ö
    "(?<!\\w)Ã\xa0(?![»:;!?])",  # à; not « Ã »
    f"(?<!\\w)Ã[…‘’“”‹›](?=[{_SMALL}])",
    f"(?<!\\w)Å[‚›“](?=[{_SMALL}])",  # ł, ś, œ
    "(?:(?<=\\d)|(?<=\\d ))Ã—",  # ×
    rf"(?:(?<![\w„“”\"'‚‘’»«›‹(])|(?<=\d))Â(?!\xa0[»:;!?])[{_APART}]",  # not « Â »
    "(?<=[A-ZÄÖÜ])Â\xa0(?=\\w)",  # no French word ends in Â, and behind Turkish HÂLÂ stands a space
    rf"(?<=[{_SMALL}\d.,;:!?])Â (?=\S)",  # its no-break space was made a space
    rf"(?<=[{_SMALL}])[ÄÅ]{_STRICT}",
    rf"[ÄÅ]{_STRICT}(?=[{_SMALL}])",  # not the unit in 5 Å³
    f"â‚¬(?:[ÅË][{_ANY}])?",
    rf"â[\x80-\x9f€‚„†ˆ‰•–—˜™šœž][{_ANY}]",
    rf"á[º»][{_ANY}]",
    rf"(?:[ÐÑ][{_ANY}]){{2,}}|(?:[ÎÏ][{_ANY}]){{2,}}",  # Cyrillic, Greek
    rf"ï(?:»¿|¿½|¬[{_ANY}])",
    rf"ð[Ÿ\x9f][{_ANY}]{{2}}",
)
_RUN = re.compile(f"(?=[ÂÃÄÅÌÎÏÐÑáâïð])(?:{'|'.join(_SEQUENCES)})+")
_SIGNS = (*"ÃÂâÌïðÅÐÎ", *"\x80\x82\x84\x85\x8b\x91\x92\x93\x94\x95\x96\x97\x99\x9b")
"""A text with mojibake has one of these, or `_SIGN`: the letters are quick to look for."""
_SIGN = re.compile(f"Ä[{_ANY}]")
_BYTE_ORDER_MARK = "ï»¿"
_CONTROLS = {point: bytes([point]).decode(_ENCODINGS[1]) for point in range(0x80, 0xA0)}
_ABOUT = re.compile(
    r"\bUTF-?8|\bISO.?8859|\bWindows-?125|Mojibake|\bUnicode|Zeichens[aä]tz|Zeichen[ck]odierung",
    re.IGNORECASE,
)


def repair_mojibake(text: str, leave: Callable[[str], object] | None = None) -> str:
    """The text with its characters as they were before they were decoded wrongly.

    Control characters from U+0080 on become those of Windows-1252, as in browsers. A text about encodings
    keeps its sequences. The same object is returned where there is nothing to repair.

    Args:
        leave: is told why a text keeps its sequences.
    """
    if not any(map(text.__contains__, _SIGNS)) and not ("Ä" in text and _SIGN.search(text)):
        return text
    has_run = _RUN.search(text) is not None
    if has_run and _ABOUT.search(text):
        if leave:
            leave("speaks of encodings")
    elif has_run:
        by_lines = len(text) <= _LONGEST
        lines = text.split("\n") if by_lines else [text]
        text = "\n".join(_repair(line, by_lines) if _RUN.search(line) else line for line in lines)
    shown = text.translate(_CONTROLS)
    return text if shown == text else shown


def _repair(line: str, is_line: bool) -> str:
    for _ in range(_MOST_ROUNDS):  # each undoes one wrong decoding; a line may be made to need many
        if not _RUN.search(line):
            break
        line = line.replace(_BYTE_ORDER_MARK, "")
        fixed = _decode_line(line) if is_line else line
        fixed = fixed if fixed != line else _RUN.sub(_decode, line)
        if fixed == line:
            break
        line = fixed
    return line


def _decode_line(line: str) -> str:
    """Undo one wrong decoding of a whole line, where ftfy explains all of it."""
    if "â€ " in line:  # ftfy reads that, the rest of ”, as a dagger
        return line
    steps = ftfy.fix_encoding_and_explain(line, _CONFIG).explanation or []
    actions = [step.action for step in steps]
    if "decode" not in actions or steps[0].parameter not in _ENCODINGS:
        return line
    return ftfy.apply_plan(line, [(*step,) for step in steps[: actions.index("decode") + 1]])


def _decode(found: re.Match[str]) -> str:
    run = found[0]
    return _decoded(run) if len(run) < _LONGEST_KEPT else _decoded.__wrapped__(run)


@lru_cache(maxsize=4096)
def _decoded(run: str) -> str:
    run = run.replace("Â ", "Â\xa0")
    for encoding in _ENCODINGS:
        try:
            return run.encode(encoding).decode()
        except UnicodeError:
            continue
    return run
