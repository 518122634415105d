"""Conversations in the place of a document's text: a list of turns, `{"role": ..., "content": ...}` each."""

import re
from typing import Any

from data_prep.reading.documents import Content

FIELDS = ("messages",)
ROLES = ("system", "user", "assistant")
_ORDER = re.compile("s?(ua)+")  # initials of the roles


def _contents(name: str, value: Any) -> list[str]:
    """The contents of all turns; of other keys of a turn only tool calls are looked for.

    Raises:
        ValueError: they are no conversation that a model can learn from, and why.
    """
    if not isinstance(value, list):
        raise ValueError(f"field {name} is no list of turns")
    for turn in value:
        if isinstance(turn, dict) and turn.get("tool_calls"):
            raise ValueError("a turn with tool calls, which would be lost")
        if not isinstance(turn, dict) or turn.get("role") is None or turn.get("content") is None:
            raise ValueError("a turn without role or content")
        if not isinstance(turn["content"], str):
            raise ValueError("a turn's content is no string")
        if turn["role"] not in ROLES:
            raise ValueError(f"a role other than {', '.join(ROLES)}")
        if not turn["content"].strip():
            raise ValueError("an empty turn")
    roles = "".join(turn["role"][0] for turn in value)
    if "a" not in roles:
        raise ValueError("no assistant turn")
    if _ORDER.fullmatch(roles + "a"):
        raise ValueError("ends with a user turn")
    if not _ORDER.fullmatch(roles):
        raise ValueError("roles out of order: first system if at all, then user and assistant alternate")
    return [turn["content"] for turn in value]


CONVERSATION = Content(_contents, 'a line is {"messages": [{"role": "user", "content": "..."}, ...]}')
