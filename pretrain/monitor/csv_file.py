"""A CSV file that a run adds to line by line, such that a reader finds complete lines, each once.

The columns are the fields of a dataclass. Floats are written with every bit; an empty cell is None.
"""

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lit_gpt.cli import InputError
from lit_gpt.files import read_bounded, rename, sync, unused_path, write_atomically
from pretrain.monitor.save_errors import SaveErrors

MAX_BYTES = 4 << 30
MAX_UNWRITTEN = 100_000  # lines that wait for a disk that refuses, about 50 MB; then the oldest are lost

Row = dict[str, str]


def columns_of(record: type) -> list[str]:
    """The columns of a dataclass's lines."""
    return [field.name for field in fields(record)]


class CsvFile:
    """Appends lines, all from one thread. What cannot be written is kept and comes with the next lines.

    Opening it drops what a continued run will write again. A file that cannot be read is moved aside: no
    resume depends on it.

    Args:
        record: The dataclass of a line.
        keep: Whether a line of the file is kept; None: the run is new, and none is.
        create: Make a file with the header only, where there is none yet.

    Raises:
        OSError: the file cannot be written at all.
    """

    def __init__(
        self,
        path: Path,
        record: type,
        keep: Callable[[Row], bool] | None,
        errors: SaveErrors,
        create: bool = True,
    ) -> None:
        self.path = path
        self._errors = errors
        self._columns = columns_of(record)
        self.kept: list[Row] = []
        self.was_read = False
        self._size = 0
        self._unwritten: list[Any] = []
        exists = os.path.lexists(path)
        if exists and keep is not None:
            self._read(record, keep)
        if exists or create:
            write_atomically(path, self._text([self._header, *self.kept]))
            self._size = path.stat().st_size

    def append(self, lines: Sequence[Any]) -> None:
        """Add lines, and those that an earlier attempt could not; on disk when this returns, if it can."""
        self._unwritten += lines
        del self._unwritten[:-MAX_UNWRITTEN]
        try:
            if self._unwritten:
                self._append()
        except OSError as error:
            self._errors.failed(self.path.name, f"{self.path} cannot be written: {error.strerror}")
        else:
            self._unwritten.clear()
            self._errors.succeeded(self.path.name)

    def _read(self, record: type, keep: Callable[[Row], bool]) -> None:
        """Columns and lines to keep, or move the file aside."""
        try:
            found, rows = read_rows(self.path, record)
            self.kept = [row for row in rows if keep(row)]
            self.was_read = True
            self._columns = [*found, *(name for name in self._columns if name not in found)]
        except (InputError, ValueError) as error:
            aside = unused_path(self.path.with_name(f"{self.path.stem}.damaged.csv"))
            rename(self.path, aside)
            self._errors.warn(f"{error}; it is now {aside}, and {self.path.name} begins anew")

    def _append(self) -> None:
        """Add lines and force them to disk; what an attempt before left half written is cut off."""
        with self.path.open("ab") as file:
            size = min(file.tell(), self._size)
            file.truncate(size)
            header = [] if size else [self._header]
            file.write(self._text([*header, *map(_cells, self._unwritten)]).encode())
            self._size = sync(file)

    @property
    def _header(self) -> Row:
        return dict(zip(self._columns, self._columns, strict=True))

    def _text(self, rows: Sequence[Row]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, extrasaction="ignore").writerows(rows)
        return text.getvalue()


def read_rows(path: Path, record: type) -> tuple[list[str], list[Row]]:
    """The columns, of which another revision may have fewer or more, and the cells of each complete line.

    Raises:
        InputError: no such file, or not one of these lines.
    """
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file; give the folder of a run that has trained")
    try:
        text = read_bounded(path, MAX_BYTES).decode()
        # A kill in the middle of a write leaves at most a torn last line.
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        columns = list(reader.fieldnames or [])
        if columns[:2] != columns_of(record)[:2]:
            raise InputError(f"{path}: not a {path.stem} file (it begins with {text[:20]!r})")
        rows = [row for row in reader if None not in row.values()]
        for row in rows:
            for field in fields(record):
                if field.type is not str:
                    number(row.get(field.name))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return columns, rows


def number(cell: str | None) -> float | None:
    """The number in a cell, None where it is empty or not there."""
    return float(cell) if cell else None


def _cells(line: Any) -> Row:
    values = asdict(line)
    return {
        name: value if isinstance(value, str) else "" if value is None else repr(value)
        for name, value in values.items()
    }
