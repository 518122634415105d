"""A permutation of 0..n-1 for every 64-bit key, computed and inverted for each element alone: no table.

An alternating Feistel network over Z_a x Z_b (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
2002) with a = ceil(sqrt(n)) and b = ceil(n / a). Its domain a*b exceeds n by less than a; a value outside
is permuted again until it is inside (cycle walking). docs/formats.md, Packing, specifies it to the bit.
"""

import numpy as np

ROUNDS = 8

_GOLDEN = 0x9E3779B97F4A7C15


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of uint64, every bit of whose result depends on every of x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def derive_key(*parts: int | np.ndarray) -> np.ndarray:
    """A key, uint64 (1,) or (k,), from integers modulo 2^64 and arrays (k,) of them; their order matters."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        value = np.array([part % 2**64], np.uint64) if isinstance(part, int) else part.astype(np.uint64)
        key = mix64((key ^ value) + np.uint64(_GOLDEN))
    return key


def permute(x: np.ndarray, n: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Where the permutation of 0..n-1 that `key` names puts each x.

    Args:
        x: integers (k,), each in 0..n-1.
        n: one for all or one for each, 1..2^48; up to there the square root in float64 is exact enough.
        key: uint64 (1,) or (k,).

    Returns:
        int64 (k,).
    """
    return _walk(x, n, key, inverse=False)


def unpermute(y: np.ndarray, n: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """The inverse of `permute`, with the same arguments."""
    return _walk(y, n, key, inverse=True)


def _walk(x: np.ndarray, n: np.ndarray | int, key: np.ndarray, inverse: bool) -> np.ndarray:
    size = np.broadcast_to(np.asarray(n, dtype=np.uint64), x.shape)
    keys = np.broadcast_to(key, x.shape)
    value = _rounds(x.astype(np.uint64), size, keys, inverse)
    outside = np.flatnonzero(value >= size)
    while outside.size:
        value[outside] = _rounds(value[outside], size[outside], keys[outside], inverse)
        outside = outside[value[outside] >= size[outside]]
    return value.astype(np.int64)


def _rounds(x: np.ndarray, n: np.ndarray, key: np.ndarray, inverse: bool) -> np.ndarray:
    a = np.ceil(np.sqrt(n.astype(np.float64))).astype(np.uint64)
    b = (n + a - np.uint64(1)) // a
    left, right = np.divmod(x, b)
    for number in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        round_key = mix64(key + np.uint64(number * _GOLDEN % 2**64))
        if number % 2 == 0:
            shift = mix64(round_key + right) % a
            left = (left + (a - shift if inverse else shift)) % a
        else:
            shift = mix64(round_key + left) % b
            right = (right + (b - shift if inverse else shift)) % b
    return left * b + right
