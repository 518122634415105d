"""Few points that show many steps: pure functions of arrays."""

import numpy as np


def in_view(x: np.ndarray, low: float | None, high: float | None) -> tuple[int, int]:
    """The part [first, end) of ascending positions (n,) between two, with one neighbour on each side.

    None is no limit. The neighbours let a line run to the border of the picture.
    """
    first = 0 if low is None else int(np.searchsorted(x, low, "left")) - 1
    end = x.size if high is None else int(np.searchsorted(x, high, "right")) + 1
    return min(max(first, 0), x.size), max(min(end, x.size), 0)


def extremes(values: np.ndarray, first: int, end: int, limit: int) -> np.ndarray:
    """Indices, ascending, of the points to draw of values[first:end]: all, or of each bucket two.

    A bucket is replaced by its least and its greatest value, at their own places: no spike is lost, and every
    point drawn is a step. Values that are not finite are not drawn. Buckets have 2^k values and begin at
    multiples of that, so that the picture stays as it is while a run grows; there are at most `limit` + 1.
    """
    size = bucket_size(end - first, limit)
    begin = first // size * size
    n_buckets = -(-(end - begin) // size)
    padded = np.full(max(n_buckets, 0) * size, np.nan)
    part = values[begin : min(begin + padded.size, values.size)]
    padded[: part.size] = part
    buckets = padded.reshape(-1, size)
    finite = np.isfinite(buckets)
    buckets = np.where(finite, buckets, np.inf)
    least = buckets.argmin(axis=1)
    greatest = np.where(finite, buckets, -np.inf).argmax(axis=1)
    start = begin + np.arange(n_buckets) * size
    return np.unique(np.concatenate([start + least, start + greatest])[np.tile(finite.any(axis=1), 2)])


def bucket_size(count: int, limit: int) -> int:
    """The least power of two of which `limit` buckets hold so many values."""
    size = 1
    while size * limit < count:
        size *= 2
    return size


def one_per_bucket(places: np.ndarray, low: float, high: float, limit: int) -> np.ndarray:
    """Indices of marks at ascending places (n,) in [low, high]: the first in each of `limit` parts of it."""
    inside = np.flatnonzero((places >= low) & (places <= high))
    bucket = (places[inside] - low) * (limit / max(high - low, 1e-12))
    return inside[np.unique(bucket.astype(np.int64), return_index=True)[1]]


def smoothed(values: np.ndarray | list[float], steps: int) -> np.ndarray:
    """Centered moving average over `steps` values, fewer at the ends, ignoring non-finite ones. (n,)"""
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    first = np.maximum(np.arange(len(values)) - (steps - 1) // 2, 0)
    end = np.minimum(np.arange(len(values)) + steps // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[end] - sums[first]) / (counts[end] - counts[first])


def largest_spike(values: np.ndarray, window: int = 50) -> int:
    """The index of the value that lies furthest above the mean of the `window` values before it.

    The first tenth does not count, in which everything falls. -1: no value is finite.
    """
    finite = np.flatnonzero(np.isfinite(values))
    if not finite.size:
        return -1
    window = min(window, values.size // 4)
    begin = max(values.size // 10, window + 1)
    mean_before = smoothed(values, window)[begin - 1 - window // 2 : values.size - 1 - window // 2]
    height = values[begin:] - mean_before
    return int(begin + np.nanargmax(height)) if np.isfinite(height).any() else int(finite[-1])


def hours_of(step_seconds: np.ndarray) -> np.ndarray:
    """Hours of training at the end of each step (n,), from the seconds of a step where they were measured.

    A mean over an interval stands at the interval's last step: the steps before it took as long.
    """
    known = np.flatnonzero(np.isfinite(step_seconds))
    if not known.size:
        return np.zeros(step_seconds.size)
    following = np.minimum(np.searchsorted(known, np.arange(step_seconds.size)), known.size - 1)
    return np.cumsum(step_seconds[known[following]]) / 3600
