"""The control tokens of conversations: what no turn may have in its text, for it would be encoded as one."""

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = list[dict[str, str]]

PROBE: Turns = [
    {"role": "user", "content": "Wie geht es dir heute?"},
    {"role": "assistant", "content": "Ganz gut, 3 × danke für die Blumen 🌻!"},
    {"role": "user", "content": "Und morgen?"},
    {"role": "assistant", "content": "Sehr schön – »wie immer«."},
]
_SYSTEM = {"role": "system", "content": "Antworte kurz."}
_CONTROL = re.compile(r"<[^<>\s]+>")  # how templates write control tokens


def written_by_template(render: Callable[[Turns], str]) -> set[str]:
    """The control tokens that a chat template writes into conversations.

    Args:
        render: the text of a conversation by the template; raises ValueError if the template refuses it.
    """
    found: set[str] = set()
    for turns in (PROBE, PROBE[:1], [_SYSTEM, *PROBE]):
        with contextlib.suppress(ValueError):  # some templates refuse system prompts, or need one
            found.update(_CONTROL.findall(render(turns)))
    return found


def control_tokens(tokenizer: "PreTrainedTokenizerBase", written: set[str]) -> re.Pattern[str]:
    """What finds the special tokens in a text, and those of `written` that the tokenizer has.

    Of some models the template's tokens are not special.
    """
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special or token.content in written}
    return re.compile("|".join(map(re.escape, sorted(names, reverse=True))) or "(?!)")  # the longest first
