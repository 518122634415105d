"""The documents of the shard that is being written, kept on disk too so that a killed writer can go on."""

import json
from collections.abc import Sequence
from pathlib import Path

from lit_gpt.files import cut_back, sync


class DocumentJournal:
    """Lists with one entry a document, and a file of JSON lines with the same content."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the journal as it was when it had `size` bytes."""
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.source_lines: list[int] = []
        self.lengths: list[int] = []
        self._file = cut_back(path, size)
        self._file.seek(0)
        for line in self._file:
            self._extend(*json.loads(line))

    def append(self, ids: Sequence[str], source: str, lines: Sequence[int], lengths: Sequence[int]) -> None:
        """Note documents of one source."""
        entry = (list(ids), source, list(lines), list(lengths))
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._extend(*entry)

    def sync(self) -> int:
        """Bring the file to disk; returns its size."""
        return sync(self._file)

    def close(self) -> None:
        """Stop writing."""
        self._file.close()

    def _extend(self, ids: list[str], source: str, lines: list[int], lengths: list[int]) -> None:
        self.ids += ids
        self.sources += [source] * len(ids)
        self.source_lines += lines
        self.lengths += lengths
