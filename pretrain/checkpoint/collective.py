"""The ranks that save and load together: what one does, all learn of; what fails on one, fails on all."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lit_gpt.checkpoint.folder import DamagedCheckpoint, Manifest, check_files, check_hashes, read_manifest
from lit_gpt.cli import InputError


class Ranks(NamedTuple):
    """This rank among its peers. The group is gloo, and nobody else uses it: a thread of ours waits on it."""

    group: dist.ProcessGroup | None
    rank: int
    world_size: int

    def each(self, work: Callable[[], Any]) -> list[Any]:
        """Do the work on every rank (collective) and return the results of all.

        Results travel as JSON: a path arrives as a string, a tuple as a list.

        Raises:
            DamagedCheckpoint, InputError: on every rank, if the work failed on any of them.
        """
        try:
            mine = json.dumps({"result": work()}, default=os.fspath)
        except Exception as error:  # of any kind: the others wait for this rank's answer
            damaged = isinstance(error, DamagedCheckpoint)
            mine = json.dumps({"damaged": damaged, "message": self.describe(error)})
        everyone = [mine.encode()] if self.group is None else gather_bytes(mine.encode(), self.group)
        outcomes = [json.loads(text) for text in everyone]
        if failures := [outcome for outcome in outcomes if "message" in outcome]:
            kind = DamagedCheckpoint if failures[0]["damaged"] else InputError
            raise kind(failures[0]["message"])
        return [outcome["result"] for outcome in outcomes]

    def first(self, work: Callable[[], Any]) -> Any:
        """Do the work on rank 0 alone (collective) and return its result on every rank."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]

    def describe(self, error: Exception) -> str:
        """A message for all, with the node where it is not rank 0's."""
        message = str(error) if isinstance(error, InputError) else repr(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        # What differs between nodes: disks, mounts, rights. What rank 0 sees needs no name.
        return f"{message} (rank {self.rank} on {socket.gethostname()})" if self.rank > 0 else message


def gather_bytes(data: bytes, group: dist.ProcessGroup, to_all: bool = True) -> list[bytes]:
    """What every rank of the group gives, in their order; not `to_all`: on its first rank, elsewhere nothing.

    Unlike torch's own for objects, which unpickles what arrives.
    """
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(sizes, torch.tensor([mine.numel()]), group=group)
    padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8)
    padded[: mine.numel()] = mine
    parts = [torch.empty_like(padded) for _ in sizes] if to_all or group.rank() == 0 else []
    if to_all:
        dist.all_gather(parts, padded, group=group)
    else:
        dist.gather(padded, parts or None, group=group, group_dst=0)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes, strict=False)]


def verify_together(ranks: Ranks, folder: Path) -> Manifest:
    """`lit_gpt.checkpoint.folder.verify`, each rank reading a share of the bytes (collective).

    Raises:
        DamagedCheckpoint: naming the file and the reason; rank 0 sees it too.
        InputError: only another rank sees it: what is wrong is its node, which is named.
    """

    def list_files() -> str:
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        return manifest.to_json()

    manifest = Manifest.from_json(ranks.first(list_files))
    by_size = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)

    def check_share() -> list[str]:
        for name, entry in by_size[ranks.rank :: ranks.world_size]:
            try:
                check_hashes(folder, {name: entry})
            except DamagedCheckpoint as damage:
                return [name, ranks.describe(damage)]
        return []

    if found := [pair for pair in ranks.each(check_share) if pair]:
        name, reason = found[0]
        ranks.first(lambda: check_hashes(folder, {name: manifest.files[name]}))
        raise InputError(
            f"{reason}; rank 0 reads it as it was saved, so look at that node's mounts and memory"
        )
    return manifest
