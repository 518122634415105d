"""Documents that are held out of those to learn from, by the hash of their ids."""

from collections.abc import Iterable, Iterator

from data_prep.reading.documents import Document
from data_prep.tokenizing.work import is_validation
from lit_gpt.cli import progress

_MAX_BYTES = 64_000_000


class HeldOut:
    """A share of the documents; where it has too much text, those of the lowest hashes are kept of it."""

    def __init__(self, share: float) -> None:
        self._share = self._kept_share = share
        self._documents: list[Document] = []
        self._n_bytes = 0
        self.n_dropped = 0
        """Documents that are held out, but not kept."""

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self._documents]

    def take_from(self, documents: Iterable[Document]) -> Iterator[str]:
        """Hold documents out; the texts of the others."""
        with progress(description="read", unit="B") as bar:
            for document in documents:
                n_bytes = len(document.text.encode())
                bar.update(n_bytes)
                if not is_validation(document.id, self._share):
                    yield document.text
                elif is_validation(document.id, self._kept_share):
                    self._documents.append(document)
                    self._n_bytes += n_bytes
                    self._drop()
                else:
                    self.n_dropped += 1

    def _drop(self) -> None:
        while self._n_bytes > _MAX_BYTES:
            kept = [one for one in self._documents if is_validation(one.id, self._kept_share / 2)]
            if not kept:
                return  # a few very long documents
            self.n_dropped += len(self._documents) - len(kept)
            self._documents, self._kept_share = kept, self._kept_share / 2
            self._n_bytes = sum(len(one.text.encode()) for one in kept)
