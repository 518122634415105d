"""Turn texts into sets of hashed word n-grams (shingles) and MinHash signatures, many texts at a time.

Two texts count as equal if their words are: letters without case and diacritics, each number as one digit;
punctuation and symbols only separate words. These are datatrove's rules, except that all symbols separate and
that a soft hyphen does not. All steps work on arrays over the characters and words of a batch of texts.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

BATCH = 1 << 18
"""Characters to work on at a time; a longer text is cut, at a space if there is one."""

# Codes of characters; those of letters and other symbols in words are hashes.
_UNSEEN, _DELETED, _SEPARATOR, _POINT, _BORDER, _DIGIT = range(6)
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_LONGEST = BATCH + 2
_U64 = np.uint64


def _powers(base: int) -> np.ndarray:
    return np.cumprod(np.full(_LONGEST, base, _U64), dtype=_U64)


_POWERS = _powers(_BASE)
_INVERSE_POWERS = _powers(pow(_BASE, -1, 1 << 64))
_CODES = np.zeros(0x110000, _U64)  # by code point, filled as they occur


def _code(character: str) -> int:
    """The code of a character: equal for those that count as equal."""
    category = unicodedata.category(character)
    if category in ("Mn", "Cf"):
        return _DELETED
    if category[0] in "ZPSC":
        return _POINT if character in ".," else _SEPARATOR
    if category == "Nd":
        return _DIGIT
    letters = unicodedata.normalize("NFD", character.lower())
    return xxhash.xxh64_intdigest("".join(c for c in letters if unicodedata.category(c) != "Mn").encode())


def _mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits of uint64 values in place, by the finaliser of MurmurHash3."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> _U64(33)
        values *= _U64(factor)
    values ^= values >> _U64(33)
    return values


def _word_hashes(pieces: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash the words of pieces of text.

    Returns:
        uint64 (words,): their hashes; int64 (pieces + 1,): where each piece's words begin, then the total.
    """
    points = np.frombuffer("\n".join(["", *pieces, ""]).encode("utf-32-le"), "<u4")
    codes = _CODES[points]
    if not codes.all():
        for point in set(points[codes == _UNSEEN].tolist()):
            _CODES[point] = _code(chr(point))
        codes = _CODES[points]
    codes[np.cumsum([0, *(len(piece) + 1 for piece in pieces)])] = _BORDER
    codes = _without(codes, codes == _DELETED)
    digits = codes == _DIGIT
    points_between = (codes[1:-1] == _POINT) & digits[:-2] & digits[2:]  # 1.000,50 is one number
    codes[1:-1][points_between] = _DIGIT
    digits[1:-1] |= points_between
    digits[1:] &= digits[:-1]
    codes = _without(codes, digits)  # all digits of a number but the first
    separates = codes <= _BORDER
    edges = np.flatnonzero(separates[1:] != separates[:-1])
    first, last = edges[0::2], edges[1::2]  # the character before the word, its last character
    borders = np.flatnonzero(codes == _BORDER)
    codes *= _POWERS[: len(codes)]
    sums = np.cumsum(codes, dtype=_U64)
    # Divided by the power at its start, a word's polynomial does not depend on its place.
    words = (sums[last] - sums[first]) * _INVERSE_POWERS[first]
    return _mix(words), np.searchsorted(first, borders)


def _without(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    return values[~where] if where.any() else values


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most BATCH characters."""
    start = 0
    while len(text) - start > BATCH:
        end = text.rfind(" ", start + 1, start + BATCH)
        end = start + BATCH if end == -1 else end
        yield text[start:end]
        start = end
    yield text[start:]


def _grams(hashes: np.ndarray, words: int) -> np.ndarray:
    """uint64: the hash of each sequence of so many words, of 32 bits."""
    n = max(len(hashes) - (words - 1), 0)
    grams = hashes[:n].copy()
    for offset in range(1, words):
        grams *= _U64(_BASE)
        grams += hashes[offset : n + offset]
    return _mix(grams) >> _U64(32)


def shared_words(one: Sequence[str], other: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    """Which white-space words of two texts belong to a shingle that both have.

    Returns:
        bool (white-space words,) for each text.
    """
    hashed = []
    for text in (one, other):
        parts = [_word_hashes(part) for part in _grouped(text)]
        counts = np.concatenate([np.diff(begins) for _, begins in parts])
        owner = np.repeat(np.arange(len(text)), counts)
        hashed.append((_grams(np.concatenate([hashes for hashes, _ in parts]), words), owner))
    found = []
    for text, (grams, owner), (others, _) in zip((one, other), hashed, hashed[::-1], strict=True):
        is_shared = np.zeros(len(text), dtype=bool)
        starts = np.flatnonzero(np.isin(grams, others))
        is_shared[owner[np.add.outer(starts, np.arange(words))]] = True
        found.append(is_shared)
    return found[0], found[1]


def _shingles(texts: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    """uint32: the different shingles of each text, sorted, one text after the other; int64: their numbers."""
    pieces = [list(_pieces(text)) for text in texts]
    hashed = [_word_hashes(part) for part in _grouped([piece for each in pieces for piece in each])]
    hashes = np.concatenate([each[0] for each in hashed])
    counts = np.concatenate([np.diff(each[1]) for each in hashed])
    first_pieces = np.cumsum([0, *map(len, pieces)])[:-1]
    n_grams = np.maximum(np.add.reduceat(counts, first_pieces) - (words - 1), 0)
    grams = _grams(hashes, words)
    # With the text's number in the upper half, one sort orders the shingles of all texts.
    starts = np.cumsum([0, *np.add.reduceat(counts, first_pieces)])[:-1]
    where = np.repeat(starts - np.cumsum(n_grams) + n_grams, n_grams) + np.arange(n_grams.sum())
    keys = np.repeat(np.arange(len(texts), dtype=_U64) << _U64(32), n_grams) | grams[where]
    keys.sort()
    keys = keys[np.diff(keys, prepend=~keys[:1]) != 0]
    sizes = np.bincount((keys >> _U64(32)).astype(np.int64), minlength=len(texts))
    return keys.astype(np.uint32), sizes


def _grouped(pieces: Sequence[str]) -> Iterator[list[str]]:
    """Consecutive pieces, about BATCH characters at a time."""
    group: list[str] = []
    size = 0
    for piece in pieces:
        if group and size + len(piece) + 1 > BATCH:
            yield group
            group, size = [], 0
        group.append(piece)
        size += len(piece) + 1
    yield group


@dataclass(frozen=True)
class Signed:
    """Shingles and keys of some texts."""

    shingles: np.ndarray
    """uint32: the different shingles of each text, sorted, one text after the other."""
    sizes: np.ndarray
    """int64 (texts,): how many shingles each has; 0 if it has fewer words than a shingle."""
    keys: np.ndarray
    """uint64 (texts, bands): texts with a high Jaccard similarity probably share one. 0 without shingles."""
    set_hashes: np.ndarray
    """uint64 (texts,): of the set of shingles."""


class Signer:
    """Computes shingles and band keys.

    Args:
        words: of a shingle.
        bands, hashes_per_band: two texts with a Jaccard similarity of s share a key with probability
            1 - (1 - s ** hashes_per_band) ** bands.
    """

    def __init__(self, words: int, bands: int, hashes_per_band: int) -> None:
        self.words = words
        self.bands = bands
        self.hashes_per_band = hashes_per_band
        draws = np.random.RandomState(1).randint(0, 1 << 32, (2, bands * hashes_per_band), dtype=np.uint32)
        self._factors, self._summands = draws[0] | np.uint32(1), draws[1]

    def sign(self, texts: Sequence[str]) -> Signed:
        """Sign some texts, best about BATCH characters in all."""
        return self.sign_sets(*_shingles(texts, self.words))

    def sign_sets(self, shingles: np.ndarray, sizes: np.ndarray) -> Signed:
        """Sign sets of shingles, given as in `Signed`."""
        keys = np.zeros((len(sizes), self.bands), _U64)
        set_hashes = np.zeros(len(sizes), _U64)
        has_any = sizes > 0
        if has_any.any():
            starts = (np.cumsum(sizes) - sizes)[has_any]
            minima = self._minima(shingles, starts)
            keys[has_any] = self._band_keys(minima)
            set_hashes[has_any] = np.add.reduceat(_mix(shingles.astype(_U64)), starts)
        return Signed(shingles, sizes, keys, set_hashes)

    def _minima(self, shingles: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """uint32 (texts, hashes): the least value of each hash function over the shingles of a text."""
        minima = np.empty((len(starts), len(self._factors)), np.uint32)
        hashed = np.empty_like(shingles)
        for number, (factor, summand) in enumerate(zip(self._factors, self._summands, strict=True)):
            np.multiply(shingles, factor, out=hashed)
            hashed += summand
            minima[:, number] = np.minimum.reduceat(hashed, starts)
        return minima

    def _band_keys(self, minima: np.ndarray) -> np.ndarray:
        in_bands = minima.reshape(len(minima), self.bands, self.hashes_per_band).astype(_U64)
        keys = np.broadcast_to(np.arange(1, self.bands + 1, dtype=_U64), in_bands.shape[:2]).copy()
        for number in range(self.hashes_per_band):
            keys = _mix(keys ^ (in_bands[:, :, number] + _U64(_BASE)))
        return keys
