"""Tasks whose prompts are those of version 0.3 of lm-evaluation-harness, in which older results were made."""

import random
from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import ConfigurableTask

_SEED = 42


class Harness03Task(ConfigurableTask):
    """A task of today's harness that takes items, and draws their examples, in the order of version 0.3.

    There one generator first shuffled the items, then drew the examples of one after the other. Items without
    any answer were not counted.
    """

    _made = False

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config=config)
        self._made = True

    def doc_to_choice(self, doc: Any, doc_to_choice: Any = None) -> list[str]:
        """The answers. The constructor, which tries an item, gets some that are there in any case."""
        return super().doc_to_choice(doc, doc_to_choice) if self._made else ["an answer"] * 5

    @property
    def eval_docs(self) -> Any:
        """The items in the order in which `--limit` takes the first of them."""
        return super().eval_docs.select(self._shuffle()[0])

    def set_fewshot_seed(self, seed: int | None = None) -> None:
        """Use the seed of version 0.3 in place of the argument."""
        self.sampler.rnd = self._shuffle()[1]

    def fewshot_context(self, doc: dict[str, Any], *arguments: Any, **options: Any) -> str | list[str]:
        self.sampler.item = doc
        return super().fewshot_context(doc, *arguments, **options)

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """Metrics of an item, none if it has no answers."""
        return super().process_results(doc, results) if results else {}

    def _shuffle(self) -> tuple[list[int], random.Random]:
        """The order of the items, and the generator as it is then."""
        generator, order = random.Random(_SEED), list(range(len(super().eval_docs)))
        generator.shuffle(order)
        return order, generator


class Harness03Sampler(ContextSampler):
    """For tasks without training items: draws one example more, in case that the item is among them."""

    item: dict[str, Any] | None = None
    """The item that examples are drawn for."""

    def sample(self, n: int, *arguments: Any, **options: Any) -> Sequence[dict[str, Any]]:
        """The first `n` examples that are not the item."""
        drawn = self.rnd.sample(self.fewshot_docs(), n + 1)
        return [example for example in drawn if example != self.item][:n]
