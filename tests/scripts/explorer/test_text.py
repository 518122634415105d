"""Text of a crawl, as text."""

from hypothesis import given
from hypothesis import strategies as st

from scripts.explorer.text import for_plot, title, visible


def test_what_would_reorder_or_hide_is_named():
    assert visible("a\u202eb\u2066c\u200f") == "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200F⟩"
    assert visible("a\u00adb\u2062c\U000e0041") == "a⟨U+00AD⟩b⟨U+2062⟩c⟨U+E0041⟩"
    assert visible("null\0 bell\a\r\n\tEnde\r") == "null⟨U+0000⟩ bell⟨U+0007⟩\n\tEnde⟨U+000D⟩"
    assert (
        visible("Grüße <script>alert(1)</script> 👩\u200d🚀") == "Grüße <script>alert(1)</script> 👩\u200d🚀"
    )


@given(st.text(st.characters(), max_size=300))
def test_titles_are_short_single_lines_that_plotly_takes_for_text(text):
    line = title(text, 40)
    assert len(line) <= 40
    assert "\n" not in line
    assert "<" not in for_plot(text)
    assert "&" not in for_plot(text).replace("&lt;", "").replace("&gt;", "").replace("&amp;", "")
