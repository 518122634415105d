"""Tokens of a masked store: the sign bit is set where a token is not a target, that is where no loss is.

So a raw token, int32, is the id of a target or, of a token that is only read, id - 2^31. Whatever hashes or
copies raw tokens covers the mask with them.
"""

from collections.abc import Callable

import numpy as np

DTYPE = np.dtype("<i4")
"""Of every masked store, however small its vocabulary."""
_MAX_ID = np.int32(2**31 - 1)


def mask(ids: np.ndarray, is_target: np.ndarray) -> np.ndarray:
    """Raw tokens, int32 of the shape of `ids`, of which those are targets that `is_target` (bool) says."""
    ids = np.asarray(ids, DTYPE)
    return np.where(is_target, ids, ids | ~_MAX_ID)


def ids_of(raw: np.ndarray) -> np.ndarray:
    """Ids of raw tokens, in their type, which may be wider; those of plain stores are ids already."""
    return raw & _MAX_ID if raw.dtype.kind == "i" else raw


def is_target(raw: np.ndarray) -> np.ndarray:
    """Whether raw tokens are targets, bool of their shape; in plain stores all are."""
    return raw >= 0


def mark_targets(raw: np.ndarray, decode: Callable[[np.ndarray], str]) -> str:
    """The text of raw tokens (n,), what is a target in ⟦ ⟧."""
    runs = np.split(raw, np.flatnonzero(np.diff(is_target(raw))) + 1)
    return "".join(f"⟦{decode(run)}⟧" if is_target(run[0]) else decode(ids_of(run)) for run in runs)
