"""Filtering as a step of a pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from data_prep.stages.corpus import CorpusDocument
from data_prep.stages.filters import Filters, Limits, Text
from lit_gpt.store.tokenizer import Tokenizer


class FilterDocuments(PipelineStep):
    """Says of each document why it is not kept, and counts its tokens where a tokenizer is given."""

    type, name = "FILTER", "documents"

    def __init__(self, limits: Limits, tokenizer: Path | None) -> None:
        super().__init__()
        self.limits = limits
        self.tokenizer = tokenizer

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Passes all documents on, those that are not kept with `excluded`."""
        filters = Filters(self.limits)
        tokenizer = Tokenizer.load(self.tokenizer) if self.tokenizer else None
        for document in data:
            if tokenizer is not None:
                [tokens] = tokenizer.encode([document.text])
                document.tokens = len(tokens) - 2  # without BOS and EOS
            text = Text(document.text, document.metadata, document.tokens)
            document.excluded = filters.reason_against(text)
            yield document
