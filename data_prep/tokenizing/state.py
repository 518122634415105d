"""How far a tokenizing job is: kept on disk while it runs, so that it can be killed and go on."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_prep.reading.documents import SetAside
from data_prep.tokenizing.encode import EncodedBatch, Share
from lit_gpt.cli import InputError
from lit_gpt.files import lock, write_atomically
from lit_gpt.store import manifest as store_manifest
from lit_gpt.store.manifest import Manifest
from lit_gpt.store.store_writer import UNFINISHED, TokenStoreWriter

SNAPSHOT = UNFINISHED + "json"
_LOCK = UNFINISHED + "lock"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against a second run of the command; a finished one needs no hold.

    Raises:
        InputError: it cannot be made, or another run holds it.
    """
    if (folder / store_manifest.NAME).exists() and not (folder / SNAPSHOT).exists():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / _LOCK)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; give another --output") from None
    if held is None:
        raise InputError(f"another run writes into {folder}; wait for it or give another --output")
    with held:
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)


@dataclass
class Counts:
    """What went into one store."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    words: int = 0

    def add(self, share: Share) -> None:
        """Count a batch's share."""
        self.documents += len(share.ids)
        self.tokens += len(share.tokens)
        self.text_bytes += share.text_bytes
        self.words += share.words

    def describe(self) -> dict[str, float]:
        """The counts and their ratios, BOS and EOS left out of these."""
        text_tokens = self.tokens - 2 * self.documents
        ratios = {
            "tokens_per_word": round(text_tokens / max(self.words, 1), 4),
            "bytes_per_token": round(self.text_bytes / max(text_tokens, 1), 4),
        }
        return asdict(self) | ratios


@dataclass
class State:
    """How far a job is: everything before (file, line) is in the writers' snapshots."""

    settings: dict[str, Any]
    """What the bytes depend on beside the input."""
    inputs: list[list[Any]]
    """[path, bytes, time of modification in ns] of every file."""
    val_output: str
    """Folder of the validation store."""
    file: int = 0
    line: int = 1
    position: int = 0
    """Bytes of the current file that were read."""
    file_hashes: list[str] = field(default_factory=list)
    """xxh3_128 of the files before."""
    set_aside: SetAside = field(default_factory=SetAside)
    n_empty: int = 0
    """Documents dropped because they have no text."""
    counts: list[Counts] = field(default_factory=lambda: [Counts(), Counts()])
    """Training, validation."""
    writers: list[dict[str, Any] | None] = field(default_factory=lambda: [None, None])
    """Snapshots of their writers."""

    def or_found_in(self, folder: Path) -> "State | None":
        """This state, which is a beginning, or what a killed run has left; None where the folder is finished.

        Raises:
            InputError: the folder holds the work of other settings or other files.
        """
        found = _load(folder / SNAPSHOT)
        wanted = {"input": self.inputs, "val_output": self.val_output} | self.settings
        if found is not None:
            there = {"input": found.inputs, "val_output": found.val_output} | found.settings
        elif (folder / store_manifest.NAME).exists():
            provenance = Manifest.read(folder).provenance
            inputs = [[each["path"], each["bytes"]] for each in provenance.get("inputs", [])]
            there = {"input": inputs} | provenance.get("settings", {})
            wanted = {"input": [[path, size] for path, size, _ in self.inputs]} | self.settings
        else:
            return self
        if changed := [name for name in wanted if there.get(name) != wanted[name]]:
            hint = "give the same again, another --output, or remove it"
            raise InputError(f"{folder} was begun with another {', '.join(changed)}; {hint}")
        return found

    def save(self, folder: Path, writers: Sequence[TokenStoreWriter]) -> None:
        """Take the writers' snapshots and store everything."""
        self.writers = [writer.snapshot() for writer in writers]
        write_atomically(folder / SNAPSHOT, json.dumps(asdict(self)))

    def take(self, encoded: EncodedBatch) -> None:
        """Count a batch and go on behind it.

        Raises:
            InputError: too many lines are set aside.
        """
        batch = encoded.batch
        for counts, share in zip(self.counts, encoded.shares, strict=True):
            counts.add(share)
        self.n_empty += encoded.n_empty
        for rejected in encoded.rejected:
            self.set_aside.add(batch.source, rejected)
        self.line, self.position = batch.next_line, batch.position
        if batch.file_hash is not None:
            self.file_hashes.append(batch.file_hash)
            self.file, self.line, self.position = self.file + 1, 1, 0

    def provenance(self, part: int) -> dict[str, Any]:
        """What the manifest tells of where the store of a part comes from."""
        inputs = zip(self.inputs, self.file_hashes, strict=True)
        return {
            "command": "tokenize_corpus",
            "part": ("training", "validation")[part],
            "inputs": [{"path": path, "bytes": size, "xxh3_128": hash_} for (path, size, _), hash_ in inputs],
            "settings": self.settings,
            "counts": self.counts[part].describe(),
            "empty_documents": self.n_empty,
            "set_aside": self.set_aside.counts,
            "losses": self.set_aside.losses(),
        }

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(size for _, size, _ in self.inputs)

    @property
    def bytes_done(self) -> int:
        """Of all files, read and written so far."""
        return self.position + sum(size for _, size, _ in self.inputs[: self.file])


def _load(path: Path) -> State | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["set_aside"] = SetAside(**values["set_aside"])
        values["counts"] = [Counts(**counts) for counts in values["counts"]]
        return State(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read ({error!r}); remove {path.parent} and begin again"
        ) from error
