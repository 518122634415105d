"""The main text of pages, held against the texts that the pages were made of."""

import pytest

from data_prep.text.extract import main_text
from tests.data_prep.web_pages import FORUMS, KINDS, PIECES, SURROUNDINGS, threads


@pytest.mark.parametrize("kind", FORUMS)
def test_posts_of_any_length_are_kept(kind):
    n_posts = kept = twice = 0
    for html, posts in threads(kind):
        text = main_text(html) or ""
        found = [text.count(post) for post in posts]
        n_posts += len(posts)
        kept += len(posts) - found.count(0)
        twice += sum(count > 1 for count in found)
    assert kept >= 0.98 * n_posts
    assert not twice


def test_nothing_is_lost_and_surroundings_stay_only_on_short_pages():
    for kind, html in KINDS.items():
        text = main_text(html) or ""
        assert [text.count(piece) for piece in PIECES[kind]] == [1] * len(PIECES[kind]), kind
        assert kind in ("recipe", "song", "short") or not any(word in text for word in SURROUNDINGS), kind
