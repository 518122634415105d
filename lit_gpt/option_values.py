"""Reads values of options: text of flags, of YAML and of JSON, as the field's annotation wants it."""

import contextlib
import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from lit_gpt.option_types import quoted

MAX_INT = 2**63 - 1

_NULL = "tag:yaml.org,2002:null"


class _PlainLoader(yaml.BaseLoader):
    """Every scalar is text but null: `01:30:00`, `no` and `1e-5` mean what they mean as flags."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(_NULL, re.compile(r"(?:~|null|Null|NULL|)$"))] for first in ("~", "n", "N", "")
    }
    yaml_constructors: ClassVar = {_NULL: lambda loader, node: None}


def read_yaml(text: str) -> Any:
    """Tables, lists, text and null of a YAML text.

    Raises:
        ValueError: it is no YAML.
    """
    try:
        return _PlainLoader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"not readable as YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not readable as YAML: {' '.join(str(error).split())}") from error


@cache
def hints_of(options_class: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields, with their ranges."""
    hints = typing.get_type_hints(options_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(options_class)}


def required(options_class: type) -> list[str]:
    """The fields without a default."""
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
            return _collection(_unpacked(value), builtin, arguments)
    return _SCALARS[hint](value) if hint in _SCALARS else build(hint, value)


def build(record_class: type, values: Any) -> Any:
    """The dataclass that a table of plain values describes, checked field by field.

    Raises:
        ValueError: all that is wrong, in one line.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{quoted(values)} is not of the form {{name: value}}")
    fields, mistakes = convert_fields(record_class, values)
    mistakes += [f"{name} is missing" for name in required(record_class) if name not in values]
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return record_class(**fields)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where something is near, else all that is known if that is not much."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, 1):
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if len(known) <= 16 else " (--help lists them)"


def _choice(value: Any, choices: tuple[str, ...]) -> str:
    if value in choices:
        return value
    raise ValueError(f"{quoted(value)} is no choice{suggestion(str(value), choices)}")


def _unpacked(value: Any) -> Any:
    """A list or table that stands in one flag."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return _unpacked(value[0]) if value[0].startswith("[") else value
    return read_yaml(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


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
