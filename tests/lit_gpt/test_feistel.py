"""The permutation against a scalar version in Python's integers, written from docs/formats.md."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt.feistel import derive_key, permute, unpermute

U64 = 2**64


def scalar_mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % U64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % U64
    return x ^ (x >> 31)


def scalar_key(*parts: int) -> int:
    key = 0
    for part in parts:
        key = scalar_mix(((key ^ part % U64) + 0x9E3779B97F4A7C15) % U64)
    return key


def scalar_permute(x: int, n: int, key: int) -> int:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    while True:
        left, right = divmod(x, b)
        for number in range(8):
            round_key = scalar_mix((key + number * 0x9E3779B97F4A7C15) % U64)
            if number % 2 == 0:
                left = (left + scalar_mix((round_key + right) % U64)) % a
            else:
                right = (right + scalar_mix((round_key + left) % U64)) % b
        x = left * b + right
        if x < n:
            return x


@given(st.integers(1, 2**48), st.integers(-(2**70), 2**70), st.data())
def test_equals_the_scalar_version_and_is_undone(n, seed, data):
    x = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5))
    key = derive_key(3, seed)
    assert key.tolist() == [scalar_key(3, seed)]
    y = permute(np.array(x), n, key)
    assert y.tolist() == [scalar_permute(value, n, int(key[0])) for value in x]
    assert unpermute(y, n, key).tolist() == x


@given(st.integers(1, 3000), st.integers(0, U64 - 1))
def test_is_a_bijection(n, seed):
    assert np.array_equal(np.sort(permute(np.arange(n), n, derive_key(seed))), np.arange(n))


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20))
def test_each_element_has_its_own_domain_and_key(domains):
    n = np.array([n for n, _ in domains])
    parts = np.array([part for _, part in domains])
    x = parts % n
    y = permute(x, n, derive_key(5, parts))
    alone = [permute(x[i : i + 1], int(n[i]), derive_key(5, int(parts[i])))[0] for i in range(len(domains))]
    assert y.tolist() == alone
    assert unpermute(y, n, derive_key(5, parts)).tolist() == x.tolist()


def test_looks_random():
    """Of a million elements: no trace of the order they had, nor of another key's permutation."""
    n = 1_000_003
    first, second = (permute(np.arange(n), n, derive_key(seed)) for seed in (1, 2))
    for one, other in ((first, np.arange(n)), (first[1:], first[:-1]), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(n)
        assert np.count_nonzero(one == other) < 10  # expected: 1
    # Where each 64th of the elements goes, in 64 parts: chi-square of 63^2 degrees of freedom.
    cells = np.bincount(np.arange(n) * 64 // n * 64 + first * 64 // n, minlength=64**2)
    chi_square = float(((cells - n / 64**2) ** 2).sum() / (n / 64**2))
    assert abs(chi_square - 63**2) < 5 * math.sqrt(2 * 63**2)


def test_keys_of_neighbours_differ():
    keys = np.concatenate([derive_key(kind, seed, np.arange(1000)) for kind in (1, 2) for seed in (0, 1)])
    assert np.unique(keys).size == keys.size
