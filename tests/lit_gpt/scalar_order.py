"""The order of docs/formats.md in Python's integers, one sample at a time: the arrays must agree with it."""

import math
from collections.abc import Sequence

U64 = 2**64
G = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % U64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % U64
    return x ^ (x >> 31)


def key(*parts: int) -> int:
    result = 0
    for part in parts:
        result = mix(((result ^ part % U64) + G) % U64)
    return result


def permute(x: int, n: int, key: int) -> int:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        left, right = divmod(x, b)
        for number in range(8):
            round_key = mix((key + number * G) % U64)
            if number % 2 == 0:
                left = (left + mix((round_key + right) % U64)) % a
            else:
                right = (right + mix((round_key + left) % U64)) % b
        x = left * b + right
        if x < n:
            return x


def by_hash(count: int, key: int) -> list[int]:
    return sorted(range(count), key=lambda number: mix((key + number) % U64))


def locate_in_store(q: int, store: int, rows: Sequence[int], seed: int, window: int) -> tuple[int, int, int]:
    """Position in a store's sequence -> epoch, shard, row."""
    epoch, j = divmod(q, sum(rows))
    shards = by_hash(len(rows), key(2, seed, store, epoch))
    for v, begin in enumerate(range(0, len(shards), window)):
        of_window = [(shard, row) for shard in shards[begin : begin + window] for row in range(rows[shard])]
        if j < len(of_window):
            shard, row = of_window[permute(j, len(of_window), key(3, seed, store, epoch, v))]
            return epoch, shard, row
        j -= len(of_window)
    raise AssertionError("an epoch has a place for each of its rows")


def deal(k: int, counts: Sequence[int], seed: int) -> tuple[int, int]:
    """Sample -> store, position in its sequence."""
    size = sum(counts)
    cards = [store for store, count in enumerate(counts) for _ in range(count)]
    deck = [cards[card] for card in by_hash(size, key(1, seed))]
    block, step = divmod(k, size)
    cut = key(1, seed, block) % size
    dealt = (deck[cut:] + deck[:cut])[: step + 1]
    return dealt[-1], block * counts[dealt[-1]] + dealt.count(dealt[-1]) - 1
