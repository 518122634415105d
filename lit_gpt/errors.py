"""The error that a user can mend."""


class InputError(Exception):
    """Something the user gave cannot be used. The message says what, where and what to do, in one line."""
