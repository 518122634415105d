"""Sequences of n units that occur more than once in a text, for many texts at a time."""

import numpy as np
import pyarrow as pa

_OF_TEXTS = np.uint64(0x9E3779B97F4A7C15)
_OF_SEQUENCES = np.uint64(0xD6E8FEB86659FD93)
"""Not a power of the number by which units are hashed: it would make `an der` equal to `en dar`."""
_QUOTED = 5
"""Words in a row that came before: fewer may do so by chance."""


class Sequences:
    """Sequences of units, and which of them are equal.

    They are compared by hashes of 64 bits. A text of 100,000 units is taken to have a repeat that it does not
    have with probability 3 * 10^-10 for each n.

    Args:
        hashes: uint64 (units,).
        text_of: int64 (units,), ascending number of the text; no sequence repeats one of another text.
        lengths: int64 (units,), in characters.
    """

    def __init__(self, hashes: np.ndarray, text_of: np.ndarray, lengths: np.ndarray) -> None:
        self._text_of = text_of
        self._chars_before = np.concatenate(([0], np.cumsum(lengths)))
        self._keys = _keys(hashes, text_of)
        self._found = [(np.arange(len(hashes)), self._keys)]

    def repeated(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of n units that occur twice or more: ascending places, and the number of each.

        Equal sequences have one number, ascending as they first occur. A sequence that repeats begins with a
        shorter one that does, so each length looks only at what the one before has left.
        """
        if n == 1:
            return _repeats(*self._found[0])
        while len(self._found) < n:
            places, numbers = self._found[-1]
            more = len(self._found)
            complete = int(np.searchsorted(places, len(self._keys) - more))
            places, numbers = places[:complete], numbers[:complete].view(np.uint64)
            self._found.append(_repeats(places, numbers * _OF_SEQUENCES + self._keys[places + more]))
        return self._found[n - 1]

    def top_chars(self, n: int, wanted: np.ndarray) -> np.ndarray:
        """int64 (texts,): characters that belong to the most frequent sequence of n units of each text.

        Among equally frequent ones the first counts.

        Args:
            wanted: bool (texts,); others get any value.
        """
        edges = np.searchsorted(self._text_of, np.arange(len(wanted) + 1))
        count = (np.diff(edges) >= n).astype(np.int64)
        place = edges[:-1] * count
        places, numbers = self.repeated(n)
        if len(places):
            counts = np.bincount(numbers)[numbers]
            firsts = np.flatnonzero(np.diff(self._text_of[places], prepend=-1))
            texts = self._text_of[places[firsts]]
            count[texts] = np.maximum.reduceat(counts, firsts)
            most = places[counts == count[self._text_of[places]]]
            place[texts] = most[np.searchsorted(most, edges[texts])]
        end = np.minimum(place + n, len(self._keys))
        return (self._chars_before[end] - self._chars_before[place] + n - 1) * count

    def most_dup_chars(self, n: int, n_texts: int) -> np.ndarray:
        """int64 (texts,): characters in all sequences of n units that came before: at least `dup_chars`."""
        places, numbers = self.repeated(n)
        starts = places[_came_before(numbers)]
        ends = starts + n
        starts[1:] = np.maximum(starts[1:], ends[:-1])
        lengths = self._chars_before[ends] - self._chars_before[starts]
        return np.bincount(self._text_of[ends - 1], lengths, n_texts).astype(np.int64)

    def dup_chars(self, n: int, wanted: np.ndarray) -> np.ndarray:
        """int64 (texts,): characters in sequences of n units that came before; no unit counts twice.

        Args:
            wanted: bool (texts,); others get any value.
        """
        places, numbers = self.repeated(n)
        which = wanted[self._text_of[places]]
        seen: set[int] = set()
        found: list[int] = []
        end = 0
        for place, number in zip(places[which].tolist(), numbers[which].tolist(), strict=True):
            if place >= end:
                if number in seen:
                    found.append(place)
                    end = place + n
                else:
                    seen.add(number)
        again = np.array(found, dtype=np.int64)
        lengths = self._chars_before[again + n] - self._chars_before[again]
        return np.bincount(self._text_of[again], lengths, len(wanted)).astype(np.int64)


def repeats(hashes: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """bool (hashes,): whether an earlier one of the same text is equal."""
    return _came_before(_number(_keys(hashes, text_of)))


def quotations(hashes: np.ndarray, text_of: np.ndarray, line_of: np.ndarray, n_lines: int) -> np.ndarray:
    """bool (lines,): of five words or more, of which every sequence of five came before in the text.

    Args:
        hashes, text_of, line_of: of the words; numbers of texts and lines ascend.
    """
    keys = _keys(hashes, text_of)
    n = max(len(keys) - _QUOTED + 1, 0)
    sequences = keys[:n]
    for place in range(1, _QUOTED):
        sequences = sequences * _OF_SEQUENCES + keys[place : place + n]
    places, numbers = _repeats(np.arange(n), sequences)
    is_new = np.ones(n, dtype=bool)
    is_new[places[_came_before(numbers)]] = False
    within = line_of[:n] == line_of[_QUOTED - 1 :]
    lines = line_of[:n][within]
    return (np.bincount(lines, minlength=n_lines) > 0) & (np.bincount(lines, is_new[within], n_lines) == 0)


def _keys(hashes: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """Hashes that differ between texts."""
    return hashes + text_of.astype(np.uint64) * _OF_TEXTS


def _repeats(places: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places whose keys occur twice or more, and the number of each key."""
    # Most keys are alone in a table of their first bits, and need not be looked up.
    n_bits = len(keys).bit_length() + 2
    rows = (keys >> np.uint64(64 - n_bits)).view(np.int64)
    shared = np.flatnonzero((np.bincount(rows) > 1)[rows])
    numbers = _number(keys[shared])
    again = np.flatnonzero((np.bincount(numbers) > 1)[numbers])
    return places[shared[again]], numbers[again]


def _number(keys: np.ndarray) -> np.ndarray:
    """Number equal keys alike, from 0 on as they first occur."""
    # By buffers: pa.array and to_numpy import pandas, which takes 0.3 s and 70 MB.
    array = pa.Array.from_buffers(pa.uint64(), len(keys), [None, pa.py_buffer(keys)])
    indices = array.dictionary_encode().indices
    return np.frombuffer(indices.buffers()[1], np.int32, len(keys)).astype(np.int64)


def _came_before(numbers: np.ndarray) -> np.ndarray:
    """bool: whether each number came before, where they ascend as they first occur."""
    return np.diff(np.maximum.accumulate(numbers), prepend=-1) == 0
