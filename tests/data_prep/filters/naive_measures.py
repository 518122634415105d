"""The measures of the filters as they are defined, for one text: what arrays of many texts must equal."""

import re
from collections import Counter

UNITS = re.compile(r"[-/\\~@|+=]*\w(?:\S*\w)?(?:(?<=\d)\.)?|[-/\\~@|+=]+|\.+|[^\w\s]")
LETTERS = re.compile(r"[^\W\d_]")
BAD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]")


def share_of_repeats(items):
    """How many items came before, their characters, and the number of items."""
    again = [item for place, item in enumerate(items) if item in items[:place]]
    return len(again), sum(map(len, again)), len(items)


def top_ngram(units, n):
    """The first of the most frequent sequences, with spaces between, as often as it occurs."""
    ngrams = [tuple(units[place : place + n]) for place in range(len(units) - n + 1)]
    if not ngrams:
        return 0
    counts = Counter(ngrams)
    first = next(ngram for ngram in ngrams if counts[ngram] == max(counts.values()))
    return len(" ".join(first)) * counts[first]


def dup_ngram(units, n):
    """Characters of sequences that came before, from left to right, none twice."""
    seen, chars, place = set(), 0, 0
    while place <= len(units) - n:
        ngram = tuple(units[place : place + n])
        chars += len("".join(ngram)) if ngram in seen else 0
        place += n if ngram in seen else 1
        seen.add(ngram)
    return chars


def measure(text, stop_words, tokens=0, ngrams=range(1, 11)):
    """Name -> value of all measures of a text that is not blank."""
    units, lines, size = UNITS.findall(text), text.splitlines(), len(text)
    words = [unit for unit in units if re.search(r"\w", unit)]
    visible = "".join(text.split())
    again, again_chars, n_lines = share_of_repeats([line for line in text.split("\n") if line.strip()])
    ellipses = text.count("...") + text.count("…")
    values = {
        "words": len(words),
        "tokens_per_word": tokens / len(text.split()),
        "bad_chars_frac": len(BAD.findall(text)) / size,
        "letters_frac": 1 - len(LETTERS.sub("", visible)) / len(visible),
        "alpha_words_frac": sum(bool(LETTERS.search(word)) for word in words) / len(units),
        "avg_word_length": sum(map(len, words)) / max(len(words), 1),
        "symbols_frac": max(text.count("#"), ellipses) / len(units),
        "bullet_lines_frac": sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines),
        "ellipsis_lines_frac": sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines),
        "new_lines_per_word": text.count("\n") / len(units),
        "lower_case_words_frac": sum(unit[0].islower() for unit in units) / max(len(words), 1),
        "dup_lines_frac": again / n_lines,
        "dup_line_chars_frac": again_chars / size,
        "stop_words": len(set(words) & set(stop_words)),
        "stop_words_frac": sum(word.lower() in stop_words for word in words) / max(len(words), 1),
    }
    values |= {f"top_ngram_frac_{n}": top_ngram(units, n) / size for n in ngrams}
    return values | {f"dup_ngram_frac_{n}": dup_ngram(units, n) / size for n in ngrams}


def once(text):
    """The text without lines that repeat an earlier one, or of which each sequence of 5 words came before."""
    kept, seen, words = [], set(), []
    for line in text.split("\n"):
        came_before, first = [], len(words)
        words += [unit for unit in UNITS.findall(line) if re.search(r"\w", unit)]
        for place in range(first, len(words) - 4):
            sequence = words[place : place + 5]
            came_before.append(any(words[at : at + 5] == sequence for at in range(place)))
        if not line.strip() or not (line in seen or (came_before and all(came_before))):
            kept.append(line)
        seen.add(line)
    return "\n".join(kept)
