"""Types of options: what a flag, a YAML key or a JSON field may hold, and what to say of anything else.

A field of a dataclass says it by its annotation: `Literal`, `Path | None`, `PositiveInt`, `Fraction`,
`Annotated[float, Range(above=0)]`. Numbers are always finite and fit 64 bits. A class variable
SHOWN_DEFAULTS has the words that `--help` shows where the default itself says nothing; GROUP_TITLE is the
title of the options in the help of a command that inherits them.
"""

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """Limits of a number."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def __call__(self, value: float) -> None:
        """Raises ValueError: outside."""
        if not (self.at_least <= value <= self.at_most and self.above < value < self.below):
            raise ValueError(f"must be {self}, not {quoted(value)}")

    def __str__(self) -> str:
        limits = (getattr(self, limit.name) for limit in dataclasses.fields(self))
        words = ("at least", "above", "at most", "below")
        pairs = zip(words, limits, strict=True)
        return " and ".join(f"{word} {limit:,}" for word, limit in pairs if math.isfinite(limit))


@dataclass(frozen=True)
class Parsed:
    """Text that a function understands; the function raises ValueError where it does not."""

    parse: Callable[[str], object]
    form: str
    """The form in words."""

    def __call__(self, value: str) -> None:
        """Raises ValueError: not of this form."""
        self.parse(value)

    def __str__(self) -> str:
        return self.form


SLURM_TIME = "minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"


def parse_duration(text: str) -> float:
    """Seconds of a time as SLURM writes it: `90` and `90:00` are minutes, `1-12:30` is a day and 12.5 hours.

    Raises:
        ValueError: anything else, or no time at all.
    """
    match = re.fullmatch(r"(?:([0-9]{1,6})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", text)
    if match is None:
        raise ValueError(f"{quoted(text)} is not a time; write {SLURM_TIME}")
    days, *parts = (None if part is None else int(part) for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # without days the first of one or two numbers is minutes, else hours
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    if total := (((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds:
        return float(total)
    raise ValueError(f"must be longer than {text}")


PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
Fraction = Annotated[float, Range(at_least=0, at_most=1)]
Share = Annotated[float, Range(at_least=0, below=1)]
Duration = Annotated[str, Parsed(parse_duration, SLURM_TIME)]


def describe(hint: Any) -> str:
    """The type and its range, in words for `--help`; nothing where the placeholder says it all."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join(filter(None, [describe(arguments[0]), *map(str, arguments[1:])]))
    if origin in (typing.Union, types.UnionType):
        return describe(arguments[0])
    return {int: "whole number", float: "number"}.get(hint, "")


def placeholder(hint: Any) -> str:
    """What `--help` shows for a value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    match origin or hint:
        case typing.Annotated | typing.Union | types.UnionType:
            return placeholder(arguments[0])
        case typing.Literal:
            return f"{{{','.join(map(str, arguments))}}}"
        case builtin if builtin is list:
            return placeholder(arguments[0])
        case builtin if builtin is dict:
            return f"{{{placeholder(arguments[0])}: {placeholder(arguments[1])}, ...}}"
        case builtin if builtin is tuple:
            return f"[{', '.join(map(placeholder, arguments))}]"
    return {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "{true,false}"}.get(hint, "VALUE")


def show(value: Any) -> str:
    """A default as a user would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def quoted(value: Any) -> str:
    """As a user would write it, shortened."""
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else reprlib.repr(value)
