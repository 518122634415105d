"""A conversation with a model: turns as ids of the chat template, and how many of them there is room for."""

from typing import TYPE_CHECKING, NamedTuple

from lit_gpt.errors import InputError
from lit_gpt.hf.control_tokens import Turns, control_tokens, written_by_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Asked(NamedTuple):
    """What the model is to continue with its answer."""

    ids: list[int]
    left_out: int
    """Oldest questions, with their answers, that this one left no room for."""


class Conversation:
    """Questions and answers in turn, after the system's turn if there is one."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", positions: int, system: str | None) -> None:
        """
        Args:
            tokenizer: has a chat template.
            positions: the model's longest sequence in tokens.
            system: what the system's turn says; None: there is none.

        Raises:
            InputError: it has a control token.
        """
        self._tokenizer, self._positions = tokenizer, positions
        self._control = control_tokens(tokenizer, written_by_template(self._text))
        self._system = [] if system is None else [{"role": "system", "content": self._plain(system)}]
        self._turns: Turns = []

    def ask(self, text: str, room: int) -> Asked:
        """Add a user's turn, and leave out the oldest ones until an answer of `room` tokens fits too.

        Raises:
            InputError: the text has a control token, the template refuses the turns, or this one alone
                leaves no position for an answer.
        """
        turns = [*self._turns, {"role": "user", "content": self._plain(text)}]
        ids, left_out = self._ids(turns), 0
        while len(ids) + room > self._positions and len(turns) > 1:
            turns = turns[2:]  # question and answer: many templates refuse two turns of one role in a row
            ids, left_out = self._ids(turns), left_out + 1
        if len(ids) >= self._positions:
            raise InputError(
                f"this turn takes {len(ids):,} tokens; the model has {self._positions:,} positions, and none "
                "is left for an answer: write a shorter one"
            )
        self._turns = turns
        return Asked(ids, left_out)

    def answer(self, text: str) -> None:
        """Add the assistant's turn."""
        self._turns.append({"role": "assistant", "content": text})

    def _plain(self, text: str) -> str:
        """The text itself; what would become a control token is refused, as `tokenize_chat.py` does."""
        if found := self._control.search(text):
            raise InputError(f"this turn has {found[0]}, a control token of the model: leave it out")
        return text

    def _text(self, turns: Turns) -> str:
        """Raises ValueError if the template refuses the turns."""
        try:
            rendered = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program: it may raise anything
            raise ValueError from error
        return str(rendered)

    def _ids(self, turns: Turns) -> list[int]:
        try:
            encoded = self._tokenizer.apply_chat_template(
                [*self._system, *turns], add_generation_prompt=True, return_dict=True
            )
        except Exception as error:  # a template is a program: it may raise anything
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"the chat template refuses these turns: {reason}") from error
        return encoded["input_ids"]
