"""Shards copied ahead of use to node-local disk, so that training reads no network file system.

    CACHE_DIR/lock                            held by the process that is copying or making room
    CACHE_DIR/FINGERPRINT/shard-00003.bin     a complete copy, hashed when it was made
    CACHE_DIR/FINGERPRINT/shard-00004.bin.part

Every process of a node, of one job or of several, may share a folder. They agree by the lock alone, which the
kernel releases however its holder dies: one process copies, the others find the copy. No process waits for a
copy: a shard that is not there is read where the store is.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lit_gpt.cli import InputError
from lit_gpt.files import lock, rename
from lit_gpt.hashed_files import FileEntry, create_hashed, sync_hashed
from lit_gpt.store.token_store import TokenStore

BLOCK = 1 << 22  # bytes copied at a time
IN_USE_SECONDS = 600  # a copy that some process wanted within this time is not removed
POLL_SECONDS = 1.0


class ShardCache:
    """The copies, and a thread that makes them.

    Args:
        folder: on a disk of this node; made if missing.
        max_bytes: that all copies in it may take, of any job.
        stores: whose shards are asked for by their number here.

    Raises:
        InputError: the folder cannot be written, or is too small for a single shard.
    """

    def __init__(self, folder: Path | str, max_bytes: int, stores: Sequence[TokenStore]) -> None:
        self._folder = Path(folder)
        self._max_bytes = max_bytes
        self._stores = stores
        largest = max(
            self._entry(n, shard).bytes for n, store in enumerate(stores) for shard in range(store.n_shards)
        )
        if largest > max_bytes:
            raise InputError(
                f"cache_gb {max_bytes / 1e9:g} is less than one shard of {largest / 1e9:.3g} GB: "
                "give more, or no cache_dir"
            )
        try:
            for number in range(len(stores)):
                self._folder_of(number).mkdir(parents=True, exist_ok=True)
            (self._folder / "lock").touch()
        except OSError as error:
            raise InputError(
                f"cache_dir {folder} cannot be written ({error.strerror}): name a folder on a local disk"
            ) from error
        self._wanted: list[tuple[int, int]] = []
        self._refused: set[tuple[int, int]] = set()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def tokens(self, store: int, shard: int) -> np.memmap:
        """A shard's tokens, from the copy if it is complete."""
        try:
            if self._path(store, shard).stat().st_size == self._entry(store, shard).bytes:
                return self._stores[store].tokens(shard, folder=self._folder_of(store))
        except FileNotFoundError:
            pass  # not copied yet, or just removed
        return self._stores[store].tokens(shard)

    def want(self, shards: Sequence[tuple[int, int]]) -> None:
        """Have these (store, shard) copied, in this order, while there is room. Returns immediately."""
        self._wanted = list(shards)
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shard-cache", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop copying and wait for the thread."""
        self._closed.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    # ---- the copying thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                finished = self._copy_wanted()
                self._wake.wait(None if finished else POLL_SECONDS)
                self._wake.clear()
        except OSError as error:
            self._say(f"{error.strerror}; from now on shards are read where the stores are")

    def _copy_wanted(self) -> bool:
        """Copy what is wanted and missing; False if another process is at it."""
        wanted = self._wanted
        self._touch(wanted)
        for store, shard in wanted:
            if self._path(store, shard).exists() or (store, shard) in self._refused:
                continue
            if (held := lock(self._folder / "lock", required=True)) is None:
                return False
            with held:
                if not self._make_room(self._entry(store, shard).bytes):
                    return True
                if not self._path(store, shard).exists():
                    self._copy(store, shard)
            if self._closed.is_set() or self._wanted is not wanted:
                return True
        return True

    def _touch(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Tell other processes what is in use."""
        for store, shard in wanted:
            with suppress(FileNotFoundError):
                os.utime(self._path(store, shard))

    def _make_room(self, needed: int) -> bool:
        """Remove leftovers of killed copies, then copies no longer in use, the oldest first."""
        for leftover in self._folder.glob("*/*.part"):
            leftover.unlink()
        copies = sorted((copy.stat().st_mtime, copy) for copy in self._folder.glob("*/*.bin"))
        taken = sum(copy.stat().st_size for _, copy in copies)
        own = {self._path(store, shard) for store, shard in self._wanted}
        for used, copy in copies:
            if taken + needed <= self._max_bytes:
                break
            if copy not in own and used < time.time() - IN_USE_SECONDS:
                taken -= copy.stat().st_size
                copy.unlink()
        return taken + needed <= self._max_bytes

    def _copy(self, store: int, shard: int) -> None:
        target = self._path(store, shard)
        part = target.with_name(target.name + ".part")
        try:
            with (self._stores[store].path / target.name).open("rb") as source, create_hashed(part) as copy:
                while block := source.read(BLOCK):
                    if self._closed.is_set():
                        return
                    copy.write(block)
                copied = sync_hashed(copy)
            if copied == self._entry(store, shard):
                rename(part, target)
            else:
                self._refused.add((store, shard))
                self._say(
                    f"{self._stores[store].path / target.name} is not what its manifest says, not copied"
                )
        finally:
            part.unlink(missing_ok=True)

    def _entry(self, store: int, shard: int) -> FileEntry:
        entry = self._stores[store].manifest.shards[shard]
        return entry.files[f"{entry.name}.bin"]

    def _folder_of(self, store: int) -> Path:
        return self._folder / self._stores[store].fingerprint[:32]

    def _path(self, store: int, shard: int) -> Path:
        return self._folder_of(store) / f"{self._stores[store].manifest.shards[shard].name}.bin"

    def _say(self, message: str) -> None:
        print(f"cache_dir {self._folder}: {message}", file=sys.stderr, flush=True)
