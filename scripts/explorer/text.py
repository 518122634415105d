"""Text of unknown origin as it may be shown: React escapes markup, here is what it leaves."""

import html

from lit_gpt.hidden_characters import is_hidden

MAX_TITLE = 120


def visible(text: str) -> str:
    """The text with hidden characters as `⟨U+202E⟩`."""
    characters = text.replace("\r\n", "\n")
    return "".join(f"⟨U+{ord(each):04X}⟩" if is_hidden(each) else each for each in characters)


def title(text: str, limit: int = MAX_TITLE) -> str:
    """The text in one line of at most `limit` characters."""
    line = " ".join(visible(text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def for_plot(text: str) -> str:
    """A title for Plotly, which takes some markup in its own texts."""
    return html.escape(title(text), quote=False)
