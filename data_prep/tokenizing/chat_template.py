"""Conversations to ids and targets, by a chat template in Jinja as transformers applies it.

Transformers renders the template in its sandbox. The template says what the assistant writes by
`{% generation %}` and `{% endgeneration %}`: the tokens between them are the targets.
"""

import functools
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lit_gpt.errors import InputError
from lit_gpt.hf.control_tokens import PROBE, Turns, control_tokens, written_by_template
from lit_gpt.store.tokenizer import Tokenizer

SHIPPED = Path(__file__).resolve().parents[1] / "templates" / "chatml.jinja"
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers looks for it
_MAX_LENGTH = 1 << 40  # nothing is truncated


class ChatTemplate:
    """A chat template with the tokenizer that its text is encoded by."""

    def __init__(self, tokenizer: Tokenizer, text: str, name: str = "--template") -> None:
        """Load the tokenizer as transformers does; `name` is the template's in errors."""
        from transformers import PreTrainedTokenizerFast  # takes a second to import

        self.tokenizer = tokenizer
        self.text = text
        self.name = name
        with TemporaryDirectory() as folder:
            tokenizer.write_for_transformers(Path(folder), _MAX_LENGTH, bos=None)
            self._backend = PreTrainedTokenizerFast.from_pretrained(folder)
        added = self._backend.added_tokens_decoder
        self._added = {token.content for token in added.values()}
        self._special = {token.content: number for number, token in added.items() if token.special}

    def has_control_tokens(self, content: str) -> bool:
        """Whether the text of a turn would be encoded as a special token somewhere, or as the template's."""
        return bool(self._control.search(content))

    @functools.cached_property
    def _control(self) -> re.Pattern[str]:
        return control_tokens(self._backend, self._written())

    def encode(self, turns: Turns) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 (n_tokens,), and which of them are targets, bool (n_tokens,).

        Raises:
            ValueError: the template refuses the conversation, and why.
        """
        encoded = self._apply(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return np.array(encoded["input_ids"], np.int32), np.array(encoded["assistant_masks"], bool)

    def turns_end_with(self, end_of_turn: int, ids: np.ndarray, targets: np.ndarray, turns: Turns) -> bool:
        """Whether the targets are as many runs as the assistant has turns, each ending with that id."""
        ends = np.flatnonzero(targets & ~np.append(targets[1:], False))
        n_turns = sum(turn["role"] == "assistant" for turn in turns)
        at_ends, anywhere = ids[ends] == end_of_turn, ids[targets] == end_of_turn
        return len(ends) == n_turns == np.count_nonzero(at_ends) == np.count_nonzero(anywhere)

    def check(self) -> int:
        """Try the template on a conversation. Returns the id of the token that ends a turn.

        Raises:
            InputError: the template or the tokenizer is not fit to train a model of conversations.
        """
        if not MARKER.search(self.text):
            raise self._error(
                "it does not say what the assistant writes; put {% generation %} before it and "
                f"{{% endgeneration %}} after it, end of turn included, as {SHIPPED.name} does"
            )
        if "strftime_now" in self.text:
            raise self._error("it writes the date (strftime_now), other tokens every day; write a fixed one")
        try:
            ids, targets = self.encode(PROBE)
        except ValueError as error:
            raise self._error(f"{error}; fix it") from error
        self._check_control_tokens()
        self._check_bos(ids)
        end_of_turn = self._end_of_turn(ids, targets)
        self._check_prompt()
        return end_of_turn

    def shortest(self) -> int:
        """Number of tokens of about the shortest conversation."""
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant")]
        return len(self.encode(turns)[0])

    def _written(self) -> set[str]:
        return written_by_template(functools.partial(self._apply, tokenize=False))

    def _apply(self, turns: Turns, **how: Any) -> Any:
        try:
            return self._backend.apply_chat_template(turns, chat_template=self.text, **how)
        except Exception as error:  # whatever the template does
            raise ValueError(f"the template fails: {type(error).__name__}: {str(error)[:200]}") from error

    def _error(self, said: str) -> InputError:
        return InputError(f"{self.name}: {said}")

    def _check_control_tokens(self) -> None:
        missing = sorted(self._written() - self._added)
        if missing:
            quoted = " ".join(f"'{name}'" for name in missing)
            raise self._error(
                f"it writes {quoted}, and {self.tokenizer.folder} has no such tokens; add them with "
                f"extend_tokenizer.py --new_tokens 0 --special_tokens {quoted}, or where no model uses the "
                "tokenizer yet, train it with train_tokenizer.py --special_tokens"
            )

    def _check_bos(self, ids: np.ndarray) -> None:
        count = int(np.count_nonzero(ids == self.tokenizer.bos_id))
        if count != 1 or ids[0] != self.tokenizer.bos_id:
            raise self._error(
                f"it writes BOS {count} times, and every document begins with one; begin with "
                "{{- bos_token }} and write no other"
            )

    def _end_of_turn(self, ids: np.ndarray, targets: np.ndarray) -> int:
        starts = np.flatnonzero(targets & ~np.append(False, targets[:-1]))
        ends = np.flatnonzero(targets & ~np.append(targets[1:], False))
        contents = [turn["content"] for turn in PROBE if turn["role"] == "assistant"]
        if len(ends) != len(contents):
            raise self._error(
                f"of {len(contents)} turns of the assistant it marks {len(ends)}; put what it writes in each "
                "between {% generation %} and {% endgeneration %}"
            )
        last = {int(token) for token in ids[ends]}
        name = self.tokenizer.token(min(last))
        if len(last) == 1 and name in self._added and name not in self._special:
            raise self._error(
                f"{name} ends a turn and would be printed like text, for it is not special in "
                f'{self.tokenizer.folder}: set its "special" to true in tokenizer.json'
            )
        if len(last) != 1 or not last <= set(self._special.values()):
            raise self._error(
                "what it marks does not end with a special token, the same in each turn, by which a model "
                "ends its turn; put that before {% endgeneration %}, with nothing between"
            )
        for start, end, content in zip(starts, ends, contents, strict=True):
            marked = self._backend.decode(ids[start:end]).strip()
            expected = self._backend.decode(self._backend.encode(content, add_special_tokens=False)).strip()
            if marked != expected:
                raise self._error(
                    f"it marks {marked!r} where the assistant writes {expected!r}; mark exactly that and the "
                    "end of the turn, with a tokenizer that knows of each token where in the text it stands"
                )
        return last.pop()

    def _check_prompt(self) -> None:
        """Check that a model is asked to answer by what it has seen before answers."""
        prompt = self._apply(PROBE[:1], tokenize=True, return_dict=True, add_generation_prompt=True)
        ids, targets = self.encode(PROBE[:2])
        if prompt["input_ids"] != ids[: int(np.argmax(targets))].tolist():
            raise self._error(
                "with add_generation_prompt it does not write what stands before what the assistant writes; "
                "let both be the same"
            )
