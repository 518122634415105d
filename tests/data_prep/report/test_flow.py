"""The picture of the flow shows the least loss."""

import io

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from data_prep.report.flow import _COLOURS, Loss, _draw


def test_a_loss_thinner_than_a_pixel_is_seen_and_no_loss_is_not():
    read = {"documents": 10**6, "text_bytes": 10**9}
    for documents, size, n_seen in ((7, 1, 2), (24, 0, 1), (0, 0, 0)):
        picture = io.BytesIO()
        _draw(read, [Loss("clean", "min_words", documents, size)], picture)
        pixels = imread(io.BytesIO(picture.getvalue()), format="png")[:, :, :3]
        seen = np.isclose(pixels, to_rgb(_COLOURS[0]), atol=0.1).all(axis=2).any(axis=0)
        begins = np.flatnonzero(np.diff(seen.astype(int)) == 1)
        assert len(begins) == n_seen
