"""The errors that a user can mend."""

import errno

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


class InputError(Exception):
    """Something the user gave cannot be used. The message says what, where and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(
            " ".join(message.splitlines())
        )  # names of files and foreign errors may have line ends


def machine_error(error: OSError) -> str | None:
    """One line for what a disk or a right refuses; None for what may be a fault of the program."""
    path = error.filename2 or error.filename
    if error.errno not in _OF_THE_MACHINE or path is None:
        return None
    line = f"{path}: {error.strerror}; mend that and run the command again"
    return " ".join(line.splitlines())
