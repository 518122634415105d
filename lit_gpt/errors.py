"""The errors that a user can fix."""

import errno
import re
import traceback
from pathlib import Path

OUT_OF_MEMORY = "out of memory"
"""How the line of a lack of memory begins."""
_OF_THE_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
}
_TORCH_ALLOCATOR = re.compile(r"DefaultCPUAllocator: .* you tried to allocate ([0-9]+) bytes")


class InputError(Exception):
    """Something the user gave cannot be used. The message says what, where and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(
            " ".join(message.splitlines())
        )  # names of files and foreign errors may have line ends


def machine_error(error: OSError | MemoryError | RuntimeError) -> str | None:
    """One line for what a disk, a permission or the memory refuses; None for possible faults of ours."""
    asked = _TORCH_ALLOCATOR.search(str(error))
    if (
        asked
        or isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    ):
        what = " ".join(str(error).splitlines()) or "an allocation failed"
        if asked:
            what = f"{int(asked[1]):,} bytes were asked for at once"
        return (
            f"{OUT_OF_MEMORY}{place_of(error)}: {what}; give the job more (SLURM: --mem) or do less at once"
        )
    if not isinstance(error, OSError):
        return None
    path = error.filename2 or error.filename
    if error.errno not in _OF_THE_MACHINE or path is None:
        return None
    line = f"{path}: {error.strerror}; fix that and run the command again"
    return " ".join(line.splitlines())


def place_of(error: BaseException) -> str:
    """Tell ` in FILE:LINE`, the innermost place in this project's own code."""
    root = Path(__file__).parents[1]
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [(path.relative_to(root), line) for path, line in frames if root in path.parents]
    places = [f" in {path}:{line}" for path, line in own if "site-packages" not in path.parts]
    return places[-1] if places else ""
