"""The flags of a dataclass of options, its YAML or JSON file, and its help.

Values are kept as text; `option_types.convert_fields` reads them. Class variables for the help:
SHOWN_DEFAULTS has the words for a default that says nothing itself; GROUP_TITLE is the title of the options
where a command inherits them.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml

from lit_gpt.errors import InputError
from lit_gpt.files import read_bounded, read_json
from lit_gpt.option_types import hints_of, required, show

MAX_CONFIG_BYTES = 1 << 20

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


def read_config(path: Path) -> dict[str, Any]:
    """The table that a YAML or JSON file holds. In YAML every scalar but null is text.

    Raises:
        InputError: naming the file.
    """
    if path.suffix == ".json":
        return read_json(path, "give a file that is there")
    try:
        table = read_yaml(read_bounded(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise InputError(f"{path} is not a table of options (name: value)")
    return table


def unpacked(value: Any, hint: Any) -> Any:
    """The list or table that one text holds, `[a, b]` or `{a: 1}`, for an option of that type; else `value`.

    A list of text may begin with a bracket: what is no YAML, such as the glob `[ab]*.jsonl`, stays as it is.

    Raises:
        ValueError: the text is no YAML.
    """
    bare = _bare(hint)
    kind = typing.get_origin(bare)
    text = value[0] if kind is list and isinstance(value, list) and len(value) == 1 else value
    openings = {list: ("[",), tuple: ("[", "{"), dict: ("[", "{")}.get(kind, ())
    if not isinstance(text, str) or not text.startswith(openings):
        return value
    try:
        return read_yaml(text)
    except ValueError:
        if kind is list and _bare(typing.get_args(bare)[0]) in (str, Path):
            return value
        raise


def option_parser(options_class: type, program: str | None) -> argparse.ArgumentParser:
    """A parser that puts (text, label for messages) into the namespace, and nothing for what is not given."""
    needed = [f"--{name} {_placeholder(hints_of(options_class)[name])}" for name in required(options_class)]
    parser = _Parser(
        program,
        usage=" ".join(["%(prog)s [--config FILE]", *needed, "[--OPTION VALUE ...]"]),
        description=inspect.cleandoc(options_class.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=_Config,
        metavar="FILE",
        help="YAML or JSON file with any of the options; flags after it win.",
    )
    for title, helps in _titled_helps(options_class):
        group = parser.add_argument_group(title) if title else parser
        for name, text in helps.items():
            hint = hints_of(options_class)[name]
            group.add_argument(
                f"--{name}",
                action=_Flag,
                nargs="+" if typing.get_origin(_bare(hint)) is list else "?" if _bare(hint) is bool else None,
                const="true",
                metavar=_placeholder(hint),
                help=text.replace("%", "%%"),
            )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


class _Flag(argparse.Action):
    """Keep the text of a flag."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        vars(namespace)[self.dest] = (values, "--")


class _Config(argparse.Action):
    """Keep the options of a file."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not values or "\0" in values:
            raise InputError(f"{option_string} needs the name of a file")
        for name, value in read_config(Path(values)).items():
            vars(namespace)[name] = (value, f"{values}: ")


def _titled_helps(options_class: type) -> Iterator[tuple[str | None, dict[str, str]]]:
    """For each class that declares options, the command's own first: its title, and help by option.

    An option that is declared again belongs, with its new docstring, to the class that does so.
    """
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    for owner in filter(dataclasses.is_dataclass, options_class.__mro__):
        texts = {name: text for name, text in docstrings(owner).items() if name in fields}
        helps = {name: _help(options_class, fields.pop(name), text) for name, text in texts.items()}
        title = vars(owner).get("GROUP_TITLE", (inspect.getdoc(owner) or "").partition("\n")[0].rstrip("."))
        if helps:
            yield (None if owner is options_class else title), helps


@cache
def docstrings(owner: type) -> dict[str, str]:
    """The text below each field that the class declares itself."""
    [declaration] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(declaration, ast.ClassDef)
    texts = {}
    for statement, following in itertools.pairwise([*declaration.body, ast.Pass()]):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
            case ast.AnnAssign(target=ast.Name(id=name)), _:
                texts[name] = ""
    return texts


def _help(options_class: type, field: dataclasses.Field, text: str) -> str:
    """`Text. (type; default: ...)`."""
    shown: Mapping[str, str] = getattr(options_class, "SHOWN_DEFAULTS", {})
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        default_text = "required"
    elif field.name in shown:
        default_text = shown[field.name]
    else:
        default_text = "" if default in (None, "", [], {}) else f"default: {show(default)}"
    about = "; ".join(filter(None, [_describe(hints_of(options_class)[field.name]), default_text]))
    return f"{text} ({about})" if about else text


def _bare(hint: Any) -> Any:
    """The annotation without ranges and None."""
    wrapped = typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType)
    return _bare(typing.get_args(hint)[0]) if wrapped else hint


def _describe(hint: Any) -> str:
    """The type and its range, in words; nothing where the placeholder says it all."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return ", ".join(filter(None, [_describe(arguments[0]), *map(str, arguments[1:])]))
    if origin in (typing.Union, types.UnionType):
        return _describe(arguments[0])
    return {int: "whole number", float: "number"}.get(hint, "")


def _placeholder(hint: Any) -> str:
    """Placeholder of a value in usage and help."""
    bare = _bare(hint)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is typing.Literal:
        return f"{{{','.join(map(str, arguments))}}}"
    if origin is list:
        return _placeholder(arguments[0])
    if origin is dict:
        return f"{{{_placeholder(arguments[0])}: {_placeholder(arguments[1])}, ...}}"
    if origin is tuple:
        return f"[{', '.join(map(_placeholder, arguments))}]"
    return {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: "{true,false}"}.get(bare, "VALUE")
