"""How far a run gets through its data: an epoch in steps, passes over each store, when they are too many."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_gpt.rows.packed_store import PackedStore
from lit_gpt.rows.store_entry import StoreEntry
from lit_gpt.store.token_store import TokenStore
from pretrain.data.training_data import TrainingData

MAX_EPOCHS = 4


@dataclass(frozen=True)
class StoreSize:
    """A store as rows of one length."""

    name: str
    rows: int
    targets: int
    share_of_targets: float | None = None
    """Of a masked store: of its tokens those that are targets."""

    @classmethod
    def of(cls, packed: PackedStore) -> "StoreSize":
        """Of a store that is packed."""
        return cls(packed.name, int(packed.rows_per_shard.sum()), packed.n_targets, _share(packed.store))

    @classmethod
    def estimate(cls, store: TokenStore, entry: StoreEntry, block_size: int, packing: str) -> "StoreSize":
        """Of a store that is not packed yet: best_fit and concat leave next to nothing free."""
        targets = round(store.n_targets * entry.fraction)
        slots = round((store.n_tokens - store.n_documents) * entry.fraction)
        rows = max(-(-slots // block_size), 1)
        if packing == "one_per_row":
            rows = max(rows, round(store.n_documents * entry.fraction))
        return cls(str(entry._replace(weight=None)), rows, targets, _share(store))


def _share(store: TokenStore) -> float | None:
    return store.n_targets / store.n_tokens if store.masked else None


class Epochs:
    """Passes of a run, or of one of its stages, over its stores. An epoch has as many rows as all stores.

    With weights a store's own epochs are longer or shorter than the run's.

    Args:
        steps_before: Of the stages before. Only `now` is told steps of the run; the others, of the stage.
        dealt: Rows of each store that the stages before were fed; they count as read.
    """

    def __init__(
        self,
        stores: Sequence[StoreSize],
        weights: Sequence[float] | None,
        global_batch_size: int,
        steps_before: int = 0,
        dealt: Sequence[int] | None = None,
    ) -> None:
        self.stores = stores
        self.rows = sum(store.rows for store in stores)
        self._batch = global_batch_size
        self._steps_before = steps_before
        self._dealt = dealt or [0] * len(stores)
        shares = weights or [store.rows for store in stores]
        self._shares = [share / sum(shares) for share in shares]

    @classmethod
    def of(cls, data: TrainingData, global_batch_size: int, steps_before: int = 0) -> "Epochs":
        """Of opened data."""
        stores = [StoreSize.of(packed) for packed in data.stores]
        return cls(stores, data.weights, global_batch_size, steps_before, data.order.start.positions)

    def passes(self, step: int) -> list[float]:
        """How often each store has been read after so many steps."""
        return [
            (dealt + step * self._batch * share) / store.rows
            for store, share, dealt in zip(self.stores, self._shares, self._dealt, strict=True)
        ]

    def tokens(self, step: int) -> int:
        """Targets of so many steps, about."""
        passes = zip(self.passes(step), self.passes(0), self.stores, strict=True)
        return round(sum((after - before) * store.targets for after, before, store in passes))

    def now(self, step: int) -> str:
        """For a progress line: the epoch that the run, or a stage, is in at a step of the run, by store."""
        passes = [f"{passed:.2f}" for passed in self.passes(step - self._steps_before)]
        return f"epoch {passes[0]}" if len(passes) == 1 else f"epochs {'/'.join(passes)}"

    def length(self, max_steps: int) -> str:
        """Steps, epochs and tokens of the run."""
        epoch = f"{self.rows / self._batch:,.1f}".removesuffix(".0")
        return (
            f"{max_steps:,} steps of {self._batch:,} rows, {self.tokens(max_steps):,} tokens, "
            f"{max_steps * self._batch / self.rows:,.2f} epochs; one epoch = {epoch} steps"
        )

    def describe(self, max_steps: int) -> list[str]:
        """For the first lines of a run: its data, its length in epochs, and warnings."""
        lines = []
        several = len(self.stores) > 1
        for store, share, passed in zip(self.stores, self._shares, self.passes(max_steps), strict=True):
            of_batch = f", {share:.1%} of each step, read {passed:.2f} times" if several else ""
            tokens = f"{store.targets:,} tokens"
            if store.share_of_targets is not None:
                tokens = f"masked: {store.targets:,} targets, {store.share_of_targets:.1%} of its tokens,"
            lines.append(f"data: {store.name}, {tokens} in {store.rows:,} rows{of_batch}")
        lines.append(f"run: {self.length(max_steps)}")
        return lines + [f"warning: {warning}" for warning in self.warnings(max_steps)]

    def warnings(self, max_steps: int) -> list[str]:
        """What is out of proportion between data and run."""
        lines = []
        for store, share, passed in zip(self.stores, self._shares, self.passes(max_steps), strict=True):
            if store.rows < share * self._batch:
                lines.append(
                    f"{store.name} has {store.rows:,} rows, fewer than a step takes of it "
                    f"({share * self._batch:,.0f}): steps read rows twice; lower --global_batch_size"
                )
            if passed > MAX_EPOCHS:
                lines.append(
                    f"{store.name} is read {passed:,.1f} times: what is read more than about "
                    f"{MAX_EPOCHS} times teaches less and less (Muennighoff et al. 2023, arXiv:2305.16264); "
                    "take more data, fewer steps or a smaller model"
                )
        return lines
