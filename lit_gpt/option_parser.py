"""The flags of a dataclass of options, its YAML or JSON file, and its help.

Values are kept as text; `option_values.convert_fields` reads them.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from lit_gpt.errors import InputError
from lit_gpt.files import read_bounded, read_json
from lit_gpt.option_types import describe, placeholder, show
from lit_gpt.option_values import hints_of, read_yaml, required

MAX_CONFIG_BYTES = 1 << 20


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
        raise InputError(f"{path} holds no table like name: value")
    return table


def option_parser(options_class: type, program: str | None) -> argparse.ArgumentParser:
    """A parser that puts (text, label for messages) into the namespace, and nothing for what is not given."""
    needed = [f"--{name} {placeholder(hints_of(options_class)[name])}" for name in required(options_class)]
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
            several = typing.get_origin(_bare(hint)) is list
            group.add_argument(
                f"--{name}",
                action=_Flag,
                nargs="+" if several else "?" if _bare(hint) is bool else None,
                const="true",
                metavar=placeholder(hint),
                help=text.replace("%", "%%"),
            )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


class _Flag(argparse.Action):
    """Keeps the text of a flag."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        vars(namespace)[self.dest] = (values, "--")


class _Config(argparse.Action):
    """Keeps all that a file gives."""

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
        texts = {name: text for name, text in _docstrings(owner).items() if name in fields}
        helps = {name: _help(options_class, fields.pop(name), text) for name, text in texts.items()}
        title = vars(owner).get("GROUP_TITLE", (inspect.getdoc(owner) or "").partition("\n")[0].rstrip("."))
        if helps:
            yield (None if owner is options_class else title), helps


@cache
def _docstrings(owner: type) -> dict[str, str]:
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
    about = "; ".join(filter(None, [describe(hints_of(options_class)[field.name]), default_text]))
    return f"{text} ({about})" if about else text


def _bare(hint: Any) -> Any:
    """The annotation without ranges and None."""
    wrapped = typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType)
    return _bare(typing.get_args(hint)[0]) if wrapped else hint
