import json
import mmap
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from lit_gpt.cli import InputError, parse_options, run_command
from lit_gpt.option_types import PositiveInt

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Options:
    """Do something."""

    input: list[str]
    """Files."""
    max_lines: PositiveInt = 3
    """Lines."""
    dry_run: bool = False
    """Show only."""
    output: Path | None = None
    """Folder."""
    names: list[str] = field(default_factory=list)
    """Names."""
    kind: Literal["small", "large"] = "small"
    shares: dict[str, float] = field(default_factory=dict)
    limits: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


def test_lists_booleans_and_dashes_are_written_as_users_write_them():
    flags = ["--input", "a", "b c", "--dry-run", "--max-lines=7", "--output", "x-y"]
    options = parse_options(Options, flags)
    assert options == Options(["a", "b c"], 7, True, Path("x-y"), [])
    assert parse_options(Options, ["--input", '["a","b"]', "--dry_run", "false"]).input == ["a", "b"]


def test_a_file_gives_options_and_flags_win(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("input: [a]\nmax_lines: 5\n")
    assert parse_options(Options, ["--config", str(file)]) == Options(["a"], 5)
    assert parse_options(Options, ["--config", str(file), "--max_lines", "6"]).max_lines == 6


def test_yaml_means_what_the_same_words_mean_as_flags(tmp_path):
    """YAML 1.1 would read seconds, a boolean, a date and text."""
    file = tmp_path / "options.yaml"
    file.write_text("input: [01:30:00, no, 2026-11-27, 'null']\nmax_lines: 1_000\ndry_run: 'no'\noutput:\n")
    assert parse_options(Options, ["--config", str(file)]) == Options(
        ["01:30:00", "no", "2026-11-27", "null"], 1000, False, None
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("input", "[x, y]", ["x", "y"]),
        ("input", '["a","b"]', ["a", "b"]),
        ("input", "[ab]*.jsonl", ["[ab]*.jsonl"]),
        ("input", "[ab].jsonl", ["[ab].jsonl"]),
        ("input", "{a,b}.jsonl", ["{a,b}.jsonl"]),
        ("limits", '{"a": [null, 1]}', {"a": (None, 1.0)}),
    ],
)
def test_a_list_or_table_in_one_text_is_the_same_as_a_flag_and_in_a_file(name, text, value, tmp_path):
    (tmp_path / "options.json").write_text(json.dumps({"input": ["a"], name: text}))
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({"input": ["a"], name: text}))
    assert getattr(parse_options(Options, ["--input", "a", f"--{name}", text]), name) == value
    for file in ("options.json", "options.yaml"):
        assert getattr(parse_options(Options, ["--config", str(tmp_path / file)]), name) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_lnes: 1", ": max_lnes: no such option; did you mean max_lines"),
        (b"max_lines: null", ": max_lines: null is not a whole number"),
        (b"max_lines: " + b"9" * 5000, ": max_lines: '9+[.]{3}9+' is not a whole number"),
        (b"output: {a: b}", ": output: {'a': 'b'} is not text"),
        (b"__class__: 1", ": __class__: no such option"),
        (b"shares: '{a: 1'", ": shares: not readable as YAML: expected ',' or '}'"),
        (b"dry_run: maybe", ": dry_run: 'maybe' is neither true nor false"),
        (b"max_lines: \xff", "codec can't decode"),
        (b"[1, 2]", "is not a table"),
        (b"3: x\nnull: y", "is not a table"),
        (b"", "is not a table"),
        (b"input: &a [*a]", "not readable as YAML"),
        (b"input: " + b"[" * 10_000 + b"]" * 10_000, "not readable as YAML"),
        (b"#" * (1 << 21), "larger than"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_none_is_named(content, message, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{re.escape(str(file))}.*{message}") as error:
        parse_options(Options, ["--input", "a", "--config", str(file)])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_lines", "abc"], "--max_lines: 'abc' is not a whole number"),
        (["--max_lins", "4"], "--max_lins: no such option; did you mean --max_lines?"),
        (["--max_lines"], "--max_lines: expected one argument"),
        (["--max_lines", "1", "2"], "'2' belongs to no option"),
        (["--max_lines", "0"], "--max_lines: must be at least 1, not 0"),
        (["--kind", "smal"], "--kind: 'smal' is not a choice; did you mean small?"),
        (["--output", ""], "--output: is empty"),
        (["--output", "a\0b"], "--output: 'a\\x00b' has a NUL character"),
        (["--shares", "{a: .inf}"], "--shares: '.inf' is not a number"),
        (["--shares", "{a: 1e999}"], "--shares: '1e999' is not a finite number"),
        (
            ["--shares", "{a: 1"],
            "--shares: not readable as YAML: expected ',' or '}', but got '<stream end>' in line 1, column 6",
        ),
        (["--shares", "3"], "--shares: '3' is not of the form {name: value}"),
    ],
)
def test_messages_are_words(flags, message):
    with pytest.raises(InputError) as error:
        parse_options(Options, ["--input", "a", *flags])
    assert str(error.value) == message


def test_help_says_type_range_and_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_options(Options, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "Lines. (whole number, at least 1; default: 3)" in text
    assert "--kind {small,large} (default: small)" in text
    assert "Files. (required)" in text


@dataclass(kw_only=True)
class Narrower(Options):
    """Do something else."""

    max_lines: PositiveInt = 9
    """Lines of this one."""


def test_help_speaks_of_its_own_command(capsys):
    with pytest.raises(SystemExit):
        parse_options(Narrower, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Lines of this one. (whole number, at least 1; default: 9)" in text
    assert "Lines. " not in text
    assert text.index("Lines of this one") < text.index("Do something: ") < text.index("Files. ")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], "input"),
        (["--input", "a", "--max_lines", "many"], "max_lines"),
        (["--input", "a", "--nonsense", "1"], "nonsense"),
        (["--input", "a", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(flags, named):
    with pytest.raises(InputError) as error:
        parse_options(Options, flags)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "take",
    [lambda: bytearray(1 << 62), lambda: mmap.mmap(-1, 1 << 62), lambda: torch.empty(1 << 58)],
    ids=["MemoryError", "ENOMEM", "torch"],
)
def test_a_lack_of_memory_is_one_line_that_says_where(take, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(Options, lambda options: take(), ["--input", "a"])
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: out of memory in tests/lit_gpt/test_cli\.py:\d+: .+; give the job more .*\n", line
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["pretrain/tinyllama_fabric.py", "scripts/publish.py"])
def test_a_closed_standard_stream_is_no_fault(command, closed):
    program = ["sh", "-c", f'exec "$0" {command} {closed}', sys.executable]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


PRINTING = """
from dataclasses import dataclass

from lit_gpt.cli import run_command

@dataclass
class Options:
    \"\"\"Print when told to.\"\"\"

    lines: int
    \"\"\"How many.\"\"\"

def main(options):
    input()
    print("line\\n" * options.lines)

run_command(Options, main)
"""


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_had_enough_is_no_fault(lines, tmp_path):
    """With many lines it is noticed while the command prints, with one when it is done."""
    (tmp_path / "command.py").write_text(PRINTING)
    command = subprocess.Popen(
        [sys.executable, tmp_path / "command.py", "--lines", str(lines)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    command.stdout.close()
    _, errors = command.communicate("now\n")
    assert errors == "interrupted: nobody reads the output\n"
    assert command.returncode == 141
