"""What every command shares: typed options as flags and YAML, one-line errors, progress bars.

A command is a dataclass of options and a function that takes one:

    if __name__ == "__main__":
        run_command(Options, main)
"""

import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import jsonargparse
from tqdm import tqdm

OptionsT = TypeVar("OptionsT")

EXIT_BAD_INPUT = 2


class InputError(Exception):
    """Something the user gave cannot be used. The message says what, where and what to do, in one line."""


def parse_options(options_class: type[OptionsT], argv: Sequence[str] | None = None) -> OptionsT:
    """Read flags, and YAML by `--config`, into the dataclass; its docstrings are the help.

    Raises:
        InputError: an unknown flag, a missing one, a value of the wrong type.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(exit_on_error=False, description=options_class.__doc__)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of the options; flags after it win."
    )
    parser.add_class_arguments(typing.cast(Any, options_class))
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parsed = parser.parse_args(_spell_out(arguments, options_class))
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{_one_line(str(error))} (--help lists the options)") from error
    names = [field.name for field in dataclasses.fields(typing.cast(Any, options_class))]
    return options_class(**{name: parsed[name] for name in names})


def run_command(options_class: type[OptionsT], main: Callable[[OptionsT], None]) -> NoReturn:
    """Parse, run, and leave: 0 done, 2 bad input (one line, no traceback), 130 interrupted."""
    try:
        main(parse_options(options_class))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "it",
    initial: int = 0,
) -> tqdm:
    """A bar on a terminal; elsewhere one plain line every 30 seconds, so that a log stays readable."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        initial=initial,
        dynamic_ncols=on_terminal,
        mininterval=0.1 if on_terminal else 30.0,
        file=sys.stderr if on_terminal else _LineWriter(),
    )


class _LineWriter:
    """Turns tqdm's carriage returns into lines."""

    def write(self, text: str) -> None:
        if stripped := text.strip():
            sys.stderr.write(stripped + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _spell_out(arguments: list[str], options_class: type) -> list[str]:
    """As jsonargparse wants it: `--input a b` as `--input ["a","b"]`, `--flag` as `--flag true`, dashes as
    underscores in an option's name."""
    hints = typing.get_type_hints(options_class)
    spelled: list[str] = []
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        underscored = "--" + name.removeprefix("--").replace("-", "_")
        if underscored.removeprefix("--") in hints and name.startswith("--"):
            name = underscored
        argument = name + equals + value
        position += 1
        hint = hints.get(argument.removeprefix("--"))
        values = []
        if _accepts(hint, list) or hint is bool:
            while position < len(arguments) and not arguments[position].startswith("--"):
                values.append(arguments[position])
                position += 1
        spelled.append(argument)
        if hint is bool:
            spelled.extend(values or ["true"])
        elif values:
            whole = len(values) == 1 and values[0].startswith("[")
            spelled.append(values[0] if whole else json.dumps(values))
    return spelled


def _accepts(hint: Any, container: type) -> bool:
    return any(typing.get_origin(part) is container for part in (hint, *typing.get_args(hint)))


def _one_line(text: str) -> str:
    return " ".join(text.removeprefix("None").split())
