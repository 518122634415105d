"""The error that a user can mend."""


class InputError(Exception):
    """Something the user gave cannot be used. The message says what, where and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(
            " ".join(message.splitlines())
        )  # names of files and foreign errors may have line ends
