"""Sequences of n units that occur more than once in a text, for many texts at a time."""

import numpy as np
import pyarrow as pa


class Sequences:
    """Sequences of units, and which of them are equal.

    A unit is compared by its hash of 64 bits; sequences are then compared exactly. A text of 100,000 units is
    taken to have a repeat that it does not have with probability 3 * 10^-10.

    Args:
        hashes: uint64 (units,).
        text_of: int64 (units,), ascending number of the text; no sequence repeats one of another text.
        lengths: int64 (units,), in characters.
    """

    def __init__(self, hashes: np.ndarray, text_of: np.ndarray, lengths: np.ndarray) -> None:
        self._text_of = text_of
        self._chars_before = np.concatenate(([0], np.cumsum(lengths)))
        self._ids, ids_again = _number(_keys(hashes, text_of))
        places = np.flatnonzero(ids_again)
        self._repeated = [(places, self._ids[places])]

    def repeated(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of n units that occur twice or more: ascending places, and the number of each.

        Equal sequences have one number. A sequence that repeats begins with a shorter one that does, so each
        length looks only at what the one before has left.
        """
        while len(self._repeated) < n:
            places, numbers = self._repeated[-1]
            more = len(self._repeated)
            complete = int(np.searchsorted(places, len(self._ids) - more))
            places, numbers = places[:complete], numbers[:complete]
            numbers, again = _number(numbers << 32 | self._ids[places + more])
            self._repeated.append((places[again], numbers[again]))
        return self._repeated[n - 1]

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
        end = np.minimum(place + n, len(self._ids))
        return (self._chars_before[end] - self._chars_before[place] + n - 1) * count

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
        chars = np.zeros(len(wanted), dtype=np.int64)
        np.add.at(chars, self._text_of[again], lengths)
        return chars


def repeats(hashes: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """bool (hashes,): whether an earlier one of the same text is equal."""
    numbers, _ = _number(_keys(hashes, text_of))
    return np.diff(np.maximum.accumulate(numbers), prepend=-1) == 0


def _keys(hashes: np.ndarray, text_of: np.ndarray) -> np.ndarray:
    """Hashes that differ between texts."""
    return hashes + text_of.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _number(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number equal keys alike, from 0 on as they first occur; also says which occur twice or more."""
    # By buffers: pa.array and to_numpy import pandas, which takes 0.3 s and 70 MB.
    array = pa.Array.from_buffers(pa.uint64(), len(keys), [None, pa.py_buffer(keys)])
    indices = array.dictionary_encode().indices
    numbers = np.frombuffer(indices.buffers()[1], np.int32, len(keys)).astype(np.int64)
    return numbers, (np.bincount(numbers) > 1)[numbers]
