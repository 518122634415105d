"""Follow a CSV file of a run while the run adds to it: its columns, of which each call reads what is new."""

import io
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from lit_gpt.errors import InputError


class CsvTail:
    """The complete lines of a file of `CsvFile`, column by column.

    A run that is resumed writes the file anew, with fewer lines: then all of it is read again. Not for
    several threads at once.

    Args:
        path: There may be no such file yet.
        texts: Columns that are text; all others are numbers.
    """

    def __init__(self, path: Path, texts: Collection[str] = ()) -> None:
        self.path = path
        self.columns: dict[str, np.ndarray] = {}
        """float64 (n_lines,) each, NaN where a cell is empty; texts as objects. Empty without a file."""
        self._texts = texts
        self._header = self._last_line = b""
        self._inode = self._end = 0

    def refresh(self) -> bool:
        """Read what is new; whether anything has changed.

        Raises:
            InputError: the file cannot be read, or is damaged.
        """
        try:
            with self.path.open("rb") as file:
                started_over = not self._continues(file)
                if started_over:
                    file.seek(0)
                    self.columns, self._header, self._end = {}, file.readline(), file.tell()
                    self._inode, self._last_line = os.fstat(file.fileno()).st_ino, self._header
                file.seek(self._end)
                new = file.read()
        except FileNotFoundError:
            changed = bool(self._end)
            self.columns, self._header, self._end = {}, b"", 0
            return changed
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error
        new = new[: new.rfind(b"\n") + 1]  # a kill in the middle of a write leaves a torn last line
        if not new and not started_over:
            return False
        added = self._parse(new)
        self.columns = {
            name: np.concatenate([self.columns[name], column]) if name in self.columns else column
            for name, column in added.items()
        }
        self._end += len(new)
        self._last_line = (self._last_line + new)[-4096:].splitlines(keepends=True)[-1]
        return True

    def _continues(self, file: io.BufferedReader) -> bool:
        """Whether what was read so far is still what the file begins with; inodes alone are used again."""
        if not self._end or os.fstat(file.fileno()).st_ino != self._inode:
            return False
        file.seek(self._end - len(self._last_line))
        return file.read(len(self._last_line)) == self._last_line

    def _parse(self, lines: bytes) -> dict[str, np.ndarray]:
        names = self._header.decode("utf-8", "replace").strip().split(",")
        types = {name: pa.string() if name in self._texts else pa.float64() for name in names}
        try:
            table = pa.csv.read_csv(
                io.BytesIO(self._header + lines),
                parse_options=pa.csv.ParseOptions(invalid_row_handler=lambda row: "skip"),
                convert_options=pa.csv.ConvertOptions(column_types=types, null_values=[""]),
            )
        except pa.ArrowException as error:
            raise InputError(f"{self.path} is damaged: {error}") from error
        return {name: table[name].to_numpy() for name in names}
