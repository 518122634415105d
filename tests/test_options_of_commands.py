"""Every command's options: odd values end in one line, `--help` in words."""

import ast
import importlib
import json
import re
from pathlib import Path
from typing import Annotated, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.filters.limits import FilterOptions
from data_prep.tokenizing import job
from lit_gpt.cli import InputError, parse_options
from lit_gpt.option_types import hints_of, required
from pretrain.options import TrainOptions
from scripts import datapoints

ROOT = Path(__file__).resolve().parents[1]
# What a command checks itself, beyond types and ranges, before it opens anything.
CHECKS = {
    TrainOptions: TrainOptions.check,
    FilterOptions: FilterOptions.limits,
    job.JobOptions: job.check,
}
ODD = [
    "", "0", "-1", "1", "1.5", "1e3", "1e-400", "1e999", "nan", ".nan", ".inf", "-.inf", "9" * 5000, "9" * 25,
    "0x10", "1_000", "-0", "٣", "null", "~", "true", "no", "auto", "1-12:30", "1:99:99", "[", "[1", "{",
    "[1, [x]]", "{a: 1}", "{1: .nan}", "{a: [null]}", "{[]: 1}", "[&a [*a]]", "!!python/name:os.system",
    "---", "--", "-x", "x" * 5000, "/dev/null", "/proc/self/mem", "a\nb", "a\0b", "\ud800", "\udc80", "🦙",
    "a:b:c", "%s{}", "x.yaml", "y" * 5000 + ".json", "100000",
]  # fmt: skip
STRUCTURED = [None, [], {}, [None], [[]], {"a": None}, {"a": {"b": [1]}}, 10**30, 1e308, True, -1, [1, "a"]]


def commands():
    """The options of every command that there is."""
    for file in sorted(
        path for folder in ("data_prep", "pretrain", "scripts") for path in (ROOT / folder).glob("*.py")
    ):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("run_command", "watchdog.run"):
                module = importlib.import_module(f"{file.parent.name}.{file.stem}")
                yield getattr(module, ast.unparse(node.args[0]))
    yield from (options_class for options_class, _ in datapoints.COMMANDS.values())


COMMANDS = list(commands())
NAMES = [f"{command.__module__}.{command.__name__}" for command in COMMANDS]


def needed(command):
    """The options that must be given, with values that are fine."""
    return dict.fromkeys(required(command), "1")


def refusal(command, arguments):
    """Parse and check: None, or the one line that says why not. Anything else is raised."""
    try:
        options = parse_options(command, arguments)
        for owner in filter(CHECKS.__contains__, type(options).__mro__):
            CHECKS[owner](options)
    except InputError as error:
        return str(error)


def assert_sensible(message):
    assert message is None or re.fullmatch(r".+", message)
    assert not re.search(r"<class|typing\.|NoneType|Error\(", message or "")


def test_all_commands_are_found():
    assert len(COMMANDS) > 30
    assert TrainOptions in COMMANDS


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_odd_value_of_every_option(command):
    fine = [f"--{name}={value}" for name, value in needed(command).items()]
    for name in [*hints_of(command), "config"]:
        for value in ODD:
            assert_sensible(refusal(command, [*fine, f"--{name}={value}"]))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_odd_flags_end_in_one_line(command, data):
    names = st.sampled_from([*hints_of(command), "no_such_option", "config"])
    texts = st.text(max_size=20).filter(lambda text: not text.startswith("-h"))  # asks for help
    values = st.one_of(st.sampled_from(ODD), texts)
    flags = data.draw(st.lists(st.tuples(names, values, st.booleans()), max_size=4))
    arguments = [
        part
        for name, value, joined in flags
        for part in ([f"--{name}={value}"] if joined else [f"--{name}", value])
    ]
    assert_sensible(refusal(command, arguments))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_odd_files_end_in_one_line(command, data, tmp_path_factory):
    names = st.sampled_from([*hints_of(command), "no_such_option", "__class__", ""])
    values = st.one_of(st.sampled_from(ODD), st.sampled_from(STRUCTURED), st.floats(), st.integers())
    table = needed(command) | data.draw(st.dictionaries(names, values, max_size=4))
    as_json = data.draw(st.booleans())
    file = tmp_path_factory.getbasetemp() / ("odd.json" if as_json else "odd.yaml")
    text = json.dumps(table) if as_json else yaml.safe_dump(table, allow_unicode=True)
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert_sensible(refusal(command, ["--config", str(file)]))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_help_explains_every_option_in_words(command, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(command, ["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert not re.search(r"<class|typing\.|Literal|Optional|NoneType|\bint\b|\bstr\b", text)
    entries = re.split(r"\n  (?=--)", text)
    explained = {entry.split()[0] for entry in entries if re.search(r"\.(\s|$)", entry)}
    assert {f"--{name}" for name in hints_of(command)} <= explained


def unlimited(hint):
    """Whether a number somewhere in the annotation has no range."""
    if get_origin(hint) is Annotated:
        return False
    return hint in (int, float) or any(map(unlimited, get_args(hint)))


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_every_number_has_a_range(command):
    free = {name for name, hint in hints_of(command).items() if unlimited(hint)}
    assert free <= {"seed", "min_language_score", "signals"}
