"""Types of options: what a flag, a YAML key or a JSON field may hold, read and checked.

A field of a dataclass says it by its annotation: `Literal`, `Path | None`, `PositiveInt`, `Fraction`,
`Annotated[float, Range(above=0)]`. Numbers are always finite and fit 64 bits. Anything else raises ValueError
with a message that shows the value. (jsonargparse takes null and infinity for numbers, gives tracebacks on
endless integers and names Python's types.)
"""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

MAX_INT = 2**63 - 1


@dataclass(frozen=True)
class Range:
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
    """In words."""

    def __call__(self, value: str) -> None:
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


@cache
def hints_of(options_class: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(options_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(options_class)}


def required(options_class: type) -> list[str]:
    missing = dataclasses.MISSING
    fields = dataclasses.fields(options_class)
    return [field.name for field in fields if field.default is missing and field.default_factory is missing]


def convert_fields(
    options_class: type, values: Mapping[str, Any], label: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """`values` as the class's fields want them, and what is wrong: `label` and name, and why."""
    hints, converted, mistakes = hints_of(options_class), {}, []
    for name, value in values.items():
        try:
            if name not in hints:
                raise ValueError(f"no such option{suggestion(name, hints)}")
            converted[name] = convert(value, hints[name])
        except ValueError as error:
            mistakes.append(f"{label}{name}: {error}")
    return converted, mistakes


def convert(value: Any, hint: Any) -> Any:
    """`value`, from a flag (text) or a file, as the annotation wants it.

    Raises:
        ValueError: it is something else; the message shows the value.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    match origin or hint:
        case typing.Annotated:
            converted = convert(value, arguments[0])
            for check in arguments[1:]:
                check(converted)
            return converted
        case typing.Union | types.UnionType:
            [some] = [argument for argument in arguments if argument is not types.NoneType]
            return None if value is None or value == "null" else convert(value, some)
        case typing.Literal:
            return _choice(value, arguments)
        case builtin if builtin in (list, tuple, dict):
            return _collection(value, builtin, arguments)
    return _SCALARS[hint](value) if hint in _SCALARS else build(hint, value)


def build(record_class: type, values: Any) -> Any:
    """The dataclass that a table of plain values describes, checked field by field.

    Raises:
        ValueError: every mistake, in one line.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{quoted(values)} is not of the form {{name: value}}")
    fields, mistakes = convert_fields(record_class, values)
    mistakes += [f"{name} is missing" for name in required(record_class) if name not in values]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return record_class(**fields)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where a name is close, else all known names if they are few."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, 1):
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 16 else " (--help lists them)"


def _choice(value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return value
    raise ValueError(f"{quoted(value)} is not a choice{suggestion(str(value), choices)}")


def _collection(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    if kind is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{quoted(value)} is not of the form {{name: value}}")
        return {convert(key, arguments[0]): convert(entry, arguments[1]) for key, entry in value.items()}
    if kind is list:
        entries = value if isinstance(value, list | tuple) else [value]
        return [convert(entry, arguments[0]) for entry in entries]
    if not isinstance(value, list | tuple) or len(value) != len(arguments):
        raise ValueError(f"{quoted(value)} is not a list of {len(arguments)}")
    return tuple(convert(entry, argument) for entry, argument in zip(value, arguments, strict=True))


def _integer(value: Any) -> int:
    if isinstance(value, str) and len(value) < 4000:
        with contextlib.suppress(ValueError):
            value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{quoted(value)} is not a whole number")
    if abs(value) > MAX_INT:
        raise ValueError("does not fit 64 bits")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{quoted(value)} is not a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{quoted(value)} is not a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{quoted(value)} is not a finite number")
    return number


def _boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    known = value if isinstance(value, bool) else words.get(value.lower()) if isinstance(value, str) else None
    if known is None:
        raise ValueError(f"{quoted(value)} is neither true nor false")
    return known


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is not text")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{quoted(value)} is not UTF-8") from None
    if b"\0" in encoded:
        raise ValueError(f"{quoted(value)} has a NUL character")
    return value


def _path(value: Any) -> Path:
    if not (text := _text(str(value) if isinstance(value, Path) else value)):
        raise ValueError("is empty")
    return Path(text)


def _anything(value: Any) -> Any:
    """Of YAML's text what JSON would call a number, true, false or null; the rest as it is."""
    if isinstance(value, list):
        return [_anything(entry) for entry in value]
    if isinstance(value, dict):
        return {_text(key): _anything(entry) for key, entry in value.items()}
    if isinstance(value, str):
        try:
            value = _text(value) if value[:1] in ("", "[", "{", '"') else json.loads(value)
        except ValueError:
            return _text(value)
    return _number(value) if isinstance(value, float) else value


_SCALARS: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    bool: _boolean,
    str: _text,
    Path: _path,
    Any: _anything,
}


def quoted(value: Any) -> str:
    """As a user would write it, shortened."""
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else reprlib.repr(value)


def show(value: Any) -> str:
    """A default as a user would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
