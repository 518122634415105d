from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lit_gpt.cli import InputError, parse_options


@dataclass
class Options:
    """Do something."""

    input: list[str]
    """Files."""
    max_lines: int = 3
    """Lines."""
    dry_run: bool = False
    """Show only."""
    output: Path | None = None
    """Folder."""
    names: list[str] = field(default_factory=list)
    """Names."""


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
