"""The checkpoint folder: its contents, when it is complete, how damage is found. Knows no model.

    iter-00010000-ckpt.pth/
        model/*.safetensors     weights
        optim/*.safetensors     the optimizer's tensors
        tokenizer/*             the tokenizer's files, where the weights came with one
        state.json              everything that is not a tensor
        MANIFEST.json           size and hash of every other file; written last

A folder is built under the name `*.tmp`, synced and renamed. What the manifest does not name is never
read, and nothing is ever unpickled. docs/formats.md has the specification.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lit_gpt.cli import InputError
from lit_gpt.files import read_bounded, sync_folder
from lit_gpt.hashed_files import FileEntry, hash_bytes, hash_files, write_hashed

MANIFEST = "MANIFEST.json"
STATE = "state.json"
PARTS = ("model", "optim", "tokenizer", "state")
FORMAT = 1

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
"""Those of a tokenizer that a checkpoint may hold; part of the format."""

_FOLDER = re.compile(r"iter-(\d{8,})-ckpt\.pth")
_FILE = re.compile(
    r"(model|optim)/[\w.-]+\.safetensors|state\.json|tokenizer/("
    + "|".join(map(re.escape, TOKENIZER_FILES))
    + ")"
)
# This process lacks the means to read; the checkpoint may be sound.
_OUR_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class DamagedCheckpoint(InputError):
    """A checkpoint that is not what was saved. The message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint."""

    step: int
    world_size: int
    state_dict_type: str
    files: Mapping[str, FileEntry]
    """By path in the folder, with forward slashes; everything but the manifest itself."""

    def to_json(self) -> str:
        content = {"format": FORMAT, **asdict(self)}
        content["files"] = {
            name: {"size": entry.bytes, "xxh3_128": entry.xxh3_128}
            for name, entry in sorted(self.files.items())
        }
        return json.dumps({**content, "xxh3_128": _hash_of_json(content)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Manifest":
        """
        Raises:
            ValueError: torn, changed, or of a newer format.
        """
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("is not a JSON object")
        if content.pop("xxh3_128", None) != _hash_of_json(content):
            raise ValueError("does not match its own hash")
        if content.pop("format") != FORMAT:
            raise ValueError(f"has another format than {FORMAT}")
        files = {name: FileEntry(entry.pop("size"), **entry) for name, entry in content.pop("files").items()}
        if foreign := [name for name in files if not _FILE.fullmatch(name)]:
            raise ValueError(f"names {foreign[0]!r}, which no checkpoint holds")
        return Manifest(files=files, **content)

    def of_parts(self, parts: Iterable[str]) -> dict[str, FileEntry]:
        """The files of some of the parts `model`, `optim`, `tokenizer`, `state`."""
        chosen = set(parts)
        return {name: entry for name, entry in self.files.items() if _part(name) in chosen}


def folder_name(step: int) -> str:
    return f"iter-{step:08d}-ckpt.pth"


def list_checkpoints(out_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of all that look complete by their name, oldest step first; file times play no part."""
    if not out_dir.is_dir():
        return []
    with os.scandir(out_dir) as entries:  # knows a folder even where its inode cannot be read
        found = [
            (_FOLDER.fullmatch(entry.name), Path(entry.path))
            for entry in entries
            if entry.is_dir(follow_symlinks=False) or os.path.isdir(entry.path)
        ]
    return sorted((int(match[1]), path) for match, path in found if match)


def verify(folder: Path, parts: Iterable[str] = PARTS) -> Manifest:
    """Read and hash every byte of the parts.

    Raises:
        DamagedCheckpoint: naming the file and the reason; one that cannot be read is damaged too.
        InputError: this process has no memory or no file descriptor left.
    """
    manifest = read_manifest(folder)
    chosen = tuple(parts)
    check_files(folder, manifest, chosen)
    check_hashes(folder, manifest.of_parts(chosen))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        DamagedCheckpoint: there is none, it cannot be read, is torn or changed, or belongs to another step.
    """
    path = folder / MANIFEST
    with _readable(path):
        if not folder.is_dir():
            raise DamagedCheckpoint(f"{folder}: no such folder")
        if not os.path.lexists(path):
            raise DamagedCheckpoint(f"{folder}: has no {MANIFEST}: not a checkpoint, or one never finished")
    try:
        manifest = Manifest.from_json(_read_text(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from error
    match = _FOLDER.match(folder.name)
    if match and int(match[1]) != manifest.step:
        raise DamagedCheckpoint(f"{path}: is of step {manifest.step}, its folder of step {int(match[1])}")
    return manifest


def check_files(folder: Path, manifest: Manifest, parts: Iterable[str] = PARTS) -> None:
    """Compare sizes, without reading.

    Raises:
        DamagedCheckpoint: a file of the parts is missing, no regular file, or has another size.
    """
    for name, entry in manifest.of_parts(parts).items():
        path = folder / name
        with _readable(path):
            info, linked = path.lstat(), path.parent != folder and path.parent.is_symlink()
        if linked or not stat.S_ISREG(info.st_mode):
            raise DamagedCheckpoint(f"{path.parent if linked else path}: a link, or not a regular file")
        if info.st_size != entry.bytes:
            raise DamagedCheckpoint(f"{path}: {info.st_size} bytes, should be {entry.bytes}")


def check_hashes(folder: Path, files: Mapping[str, FileEntry]) -> None:
    """Read every byte.

    Raises:
        DamagedCheckpoint: the content of a file is not what was saved, or cannot be read.
    """
    for name, entry in sorted(files.items()):
        with _readable(folder / name):
            found = hash_files(folder / name, follow_symlinks=False)
        if found != entry:
            raise DamagedCheckpoint(f"{folder / name}: content does not match its hash")


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a verified folder.

    Raises:
        DamagedCheckpoint: it cannot be read or is not a JSON object.
    """
    try:
        state = json.loads(_read_text(folder / STATE))
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{folder / STATE}: {error}") from error
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{folder / STATE}: is not a JSON object")
    return state


def write_state(folder: Path, state: Mapping[str, Any]) -> FileEntry:
    """Write state.json and force it to disk."""
    return write_hashed(folder / STATE, (json.dumps(state, indent=1) + "\n").encode())


def check_kind(path: Path) -> None:
    """Refuse a file or link with a checkpoint's name: only folders are ours to move or remove.

    Raises:
        InputError: it is a file, a link or a device.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        raise InputError(f"{path} has a checkpoint's name but is not a folder: move it away or rename it")


def create(folder: Path) -> Path:
    """Create an empty `*.tmp` folder in which `folder` is built; remove what an earlier attempt left.

    Raises:
        InputError: something that is not a folder has that name.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    check_kind(temporary)
    if temporary.exists():
        shutil.rmtree(temporary)
    for part in (temporary, temporary / "model", temporary / "optim"):
        part.mkdir()
    return temporary


def seal(temporary: Path, manifest: Manifest) -> None:
    """Write the manifest and force everything to disk: from now on the folder is complete.

    Raises:
        DamagedCheckpoint: a file disappeared or changed its size in the meantime.
    """
    check_files(temporary, manifest)
    write_hashed(temporary / MANIFEST, manifest.to_json().encode())
    for path in [*filter(Path.is_dir, temporary.iterdir()), temporary]:
        sync_folder(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report what the file system refuses as damage, but not what this process lacks the means for."""
    try:
        yield
    except OSError as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        kind = InputError if error.errno in _OUR_FAULT else DamagedCheckpoint
        raise kind(f"{path}: {reason}") from error


def _read_text(path: Path) -> str:
    with _readable(path):
        return read_bounded(path, follow_symlinks=False).decode()


def _part(name: str) -> str:
    return "state" if name == STATE else name.split("/")[0]


def _hash_of_json(content: Mapping[str, Any]) -> str:
    return hash_bytes(json.dumps(content, sort_keys=True).encode())
