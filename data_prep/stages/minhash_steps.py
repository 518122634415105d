"""What datatrove's MinHash needs to run in our stages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

from data_prep.stages.corpus import CorpusDocument


class _Words:
    """Words between spaces: datatrove has taken marks out of the text by then."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def _hash(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())


class SignDocuments(MinhashDedupSignature):
    """datatrove's signatures without spaCy, which it would take for the words of most languages."""

    def __init__(self, folder: Path, config: MinhashConfig) -> None:
        super().__init__(str(folder), config, language="chr_Cher")  # one whose words need no package
        self.word_tokenizer = _Words()
        self._hash_func = _hash  # its own gives strings to xxhash, which takes bytes only since version 4

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Yields nothing."""
        super().run(data, rank, world_size)
        yield from ()


class RunWhole(PipelineStep):
    """A step of datatrove that does its work when it is called, made to do it when it is pulled."""

    type, name = "DEDUP", "minhash"

    def __init__(self, step: PipelineStep) -> None:
        super().__init__()
        self.step = step
        self.stats = step.stats

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Yields nothing."""
        self.step.run(None, rank, world_size)
        yield from ()


class MarkNearDuplicates(PipelineStep):
    """Excludes the documents that datatrove's clusters do without."""

    type, name = "DEDUP", "near duplicates"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[CorpusDocument]:
        """Passes all documents on."""
        path = self.folder / f"{rank:06d}.remove"
        removed = set(np.fromfile(path, "<u4").tolist()) if path.exists() else set()
        for number, document in enumerate(data):
            if number in removed:
                document.excluded = {"reason": "near_duplicate"}
            yield document
