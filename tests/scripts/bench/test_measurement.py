"""Alternatives are measured in turns."""

from functools import partial

from scripts.bench.measurement import in_turns


def test_each_alternative_has_one_turn_a_round_in_changing_order():
    called = []

    def measure(name):
        called.append(name)
        return f"{name}{called.count(name)}"

    names = ["a", "b", "c"]
    figures = in_turns({name: partial(measure, name) for name in names}, rounds=20)
    assert figures == {name: [f"{name}{turn}" for turn in range(1, 21)] for name in names}
    assert list(figures) == names
    rounds = [called[first : first + 3] for first in range(0, 60, 3)]
    assert all(sorted(one) == names for one in rounds)
    assert len({tuple(one) for one in rounds}) > 3
