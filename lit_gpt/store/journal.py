"""The documents of the shard that is being written, kept on disk too so that a killed writer can go on."""

import json
from pathlib import Path

from lit_gpt.files import cut_back, sync
from lit_gpt.store.document_table import DocumentColumns


class DocumentJournal:
    """Columns in memory, and a file of JSON lines with the same content."""

    def __init__(self, path: Path, size: int) -> None:
        """Open the journal as it was when it had `size` bytes."""
        self._ids: list[str] = []
        self._sources: list[str] = []
        self._source_lines: list[int] = []
        self._lengths: list[int] = []
        self._file = cut_back(path, size)
        self._file.seek(0)
        for line in self._file:
            self._extend(*json.loads(line))

    @property
    def columns(self) -> DocumentColumns:
        """All documents of the shard so far."""
        return DocumentColumns(self._ids, self._sources, self._source_lines, self._lengths)

    def append(self, ids: list[str], source: str, source_lines: list[int], lengths: list[int]) -> None:
        """Note documents of one source."""
        entry = (ids, source, source_lines, lengths)
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._extend(*entry)

    def sync(self) -> int:
        """Bring the file to disk; returns its size."""
        return sync(self._file)

    def close(self) -> None:
        """Stop writing."""
        self._file.close()

    def _extend(self, ids: list[str], source: str, source_lines: list[int], lengths: list[int]) -> None:
        self._ids += ids
        self._sources += [source] * len(ids)
        self._source_lines += source_lines
        self._lengths += lengths
