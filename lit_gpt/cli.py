"""What every command shares: typed options as flags and YAML, one-line errors, progress bars.

A command is a dataclass of options and a function that takes one:

    if __name__ == "__main__":
        run_command(Options, main)
"""

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from tqdm import tqdm

from lit_gpt.errors import InputError, machine_error
from lit_gpt.option_parser import option_parser, unpacked
from lit_gpt.option_types import convert_fields, hints_of, required, suggestion

OptionsT = TypeVar("OptionsT")
Command = tuple[type[Any], Callable[[Any], None]]

EXIT_BAD_INPUT = 2


def parse_options(
    options_class: type[OptionsT], argv: Sequence[str] | None = None, program: str | None = None
) -> OptionsT:
    """Read flags, and YAML or JSON by `--config`, into the dataclass; its docstrings are the help.

    Raises:
        InputError: every mistake: unknown and missing options, values of the wrong type or out of range.
    """
    hints = hints_of(cast(type, options_class))
    arguments = [_underscored(argument, hints) for argument in (sys.argv[1:] if argv is None else argv)]
    given, strangers = option_parser(options_class, program).parse_known_args(arguments)
    _drop_alternatives(options_class, vars(given))
    values: dict[str, Any] = {}
    mistakes = _unknown(strangers, hints)
    for name, (value, label) in vars(given).items():
        try:
            plain = unpacked(value, hints.get(name))
        except ValueError as error:
            mistakes.append(f"{label}{name}: {error}")
            continue
        converted, wrong = convert_fields(options_class, {name: plain}, label)
        values |= converted
        mistakes += wrong
    mistakes += [f"--{name} is missing" for name in required(options_class) if name not in vars(given)]
    if mistakes:
        raise InputError("; ".join(mistakes))
    return options_class(**values)


def open_standard_streams() -> None:
    """Open /dev/null where the caller closed a standard stream, as `>&-` does.

    Python has None there, and the next file that is opened would get the stream's descriptor.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def print_error(message: str) -> None:
    """Print the line for bad input."""
    print(f"error: {message}", file=sys.stderr, flush=True)


def run_command(
    options_class: type[OptionsT],
    main: Callable[[OptionsT], None],
    argv: Sequence[str] | None = None,
    program: str | None = None,
    report: Callable[[str], None] = print_error,
) -> NoReturn:
    """Parse, run, and exit: 0 done, 2 bad input or what the machine refuses, 130 interrupted, 141 no reader.

    Code 2 comes with one line and no traceback, also where the disk is full or memory runs out.

    Args:
        report: Is given that line.
    """
    open_standard_streams()
    try:
        main(parse_options(options_class, argv, program))
        sys.stdout.flush()  # not at exit, where Python can only complain
    except InputError as error:
        report(str(error))
        sys.exit(EXIT_BAD_INPUT)
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            with contextlib.suppress(BrokenPipeError):  # `2>&1 | head`
                print("interrupted: nobody reads the output", file=sys.stderr, flush=True)
            sys.exit(141)
        if (message := machine_error(error)) is None:
            raise
        report(message)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    sys.exit(0)


def _output_is_closed() -> bool:
    """Whether standard output has lost its reader, as in `... | head`; what is left of it is dropped then."""
    poll = select.poll()  # not a flush: where Python does not buffer, there is nothing left to write
    poll.register(sys.stdout, 0)
    closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def run_commands(commands: Mapping[str, Command], description: str) -> NoReturn:
    """`PROGRAM COMMAND --flags`: run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in commands:
        run_command(*commands[name], sys.argv[2:], f"{Path(sys.argv[0]).name} {name}")
    if name in ("-h", "--help"):
        print(description.strip())
        sys.exit(0)
    print_error(
        f"{name!r} is not a command{suggestion(name, commands)}"
        if name
        else f"name a command: {', '.join(commands)}; --help says what each does"
    )
    sys.exit(EXIT_BAD_INPUT)


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
    """Turn tqdm's carriage returns into lines."""

    def write(self, text: str) -> None:
        if stripped := text.strip():
            sys.stderr.write(stripped + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _underscored(argument: str, names: Iterable[str]) -> str:
    """`--max-lines=7` as `--max_lines=7`."""
    name, equals, value = argument.partition("=")
    underscored = name.removeprefix("--").replace("-", "_")
    return f"--{underscored}{equals}{value}" if name.startswith("--") and underscored in names else argument


def _drop_alternatives(options_class: type, given: dict[str, tuple[Any, str]]) -> None:
    """Where a flag and a file give two options that exclude each other (ALTERNATIVES), the flag wins."""
    for pair in getattr(options_class, "ALTERNATIVES", ()):
        by_file = [name for name in pair if name in given and given[name][1] != "--"]
        if len(by_file) == 1 and all(name in given for name in pair):
            del given[by_file[0]]


def _unknown(strangers: list[str], names: Iterable[str]) -> list[str]:
    """Messages about unknown arguments; what follows an unknown option is its value."""
    flags = [argument.partition("=")[0] for argument in strangers if argument.startswith("-")]
    if strangers and not flags:
        return [f"{strangers[0]!r} belongs to no option"]
    known = [f"--{name}" for name in names]
    return [f"{flag}: no such option{suggestion(flag, known)}" for flag in flags]
