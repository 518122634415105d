"""Which parameters a run trains: patterns of names, with ranges of rows of a matrix.

A pattern names a parameter or a part of the model, which stands for everything in it: `lm_head`,
`transformer.h.0.attn`. Shell wildcards are allowed: `transformer.h.*.mlp`. A range after it, `[a:b]`, `[a:]`
or `[:b]`, stands for these rows of a matrix: `transformer.wte[32000:]`; `[new]` for those from the first new
token of an extended vocabulary on. What no pattern matches is frozen.

A parameter that is wholly frozen has neither gradient nor moments. Of one that is partly frozen the gradient
is computed, and its frozen rows are set to zero before norm and clipping: their moments and AdamW's step stay
zero. Weight decay would still shrink them, so such a matrix is not decayed.
"""

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import nn

from lit_gpt.errors import InputError
from lit_gpt.model.config import ModelConfig
from lit_gpt.model.gpt import clean_name, parameter_shapes
from lit_gpt.option_types import suggestion
from pretrain.checkpoint.snapshot import local_part, rows_of
from pretrain.extension import NEW

FrozenRows = Mapping[str, tuple[tuple[int, int], ...]]
"""(first, last + 1) of the ranges of frozen rows by parameter; nothing of one that is wholly trained."""

_RANGE = re.compile(r"(.*)\[([0-9]*):([0-9]*)\]")


def frozen_rows(trainable: Sequence[str] | None, config: ModelConfig) -> FrozenRows:
    """Resolve the patterns; None or an empty list trains everything.

    Args:
        config: With its vocabulary known.

    Raises:
        InputError: a pattern matches nothing, is of a tied head, or its rows are not those of a matrix.
    """
    if not trainable:
        return {}
    shapes = parameter_shapes(config)
    trained: dict[str, list[tuple[int, int]]] = {name: [] for name in shapes}
    for pattern in trainable:
        for name in _matches(pattern, shapes, config.tie_embeddings):
            trained[name].append(_rows(pattern, name, shapes[name]))
    gaps = {name: _gaps(ranges, shapes[name][0]) for name, ranges in trained.items()}
    return {name: ranges for name, ranges in gaps.items() if ranges}


def freeze(model: nn.Module, frozen: FrozenRows) -> None:
    """Let wholly frozen parameters have no gradient. Before the model is sharded: FSDP2 goes by it."""
    for name, parameter in model.named_parameters():
        if _is_whole(frozen.get(clean_name(name), ()), parameter.shape[0]):
            parameter.requires_grad_(False)


def partly_frozen(model: nn.Module, frozen: FrozenRows) -> list[tuple[nn.Parameter, list[slice]]]:
    """Parameters of which some rows are frozen, each with these rows within the part that this rank holds."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (ranges := frozen.get(clean_name(name))):
            _, first = rows_of(parameter)
            local = [slice(max(low - first, 0), max(high - first, 0)) for low, high in ranges]
            found.append((parameter, local))
    return found


def zero_frozen(parts: Sequence[tuple[nn.Parameter, Sequence[slice]]]) -> None:
    """Zero the frozen rows of complete gradients, each rank those of its part; waits for nothing."""
    for parameter, frozen in parts:
        assert parameter.grad is not None, "before the backward pass"
        gradient = local_part(parameter.grad)
        for rows in frozen:
            gradient[rows].zero_()


def n_trained(frozen: FrozenRows, config: ModelConfig) -> int:
    """Numbers in parameters that are not wholly frozen: each has a gradient and two moments."""
    shapes = parameter_shapes(config) if frozen else {}
    whole = [shapes[name] for name, ranges in frozen.items() if _is_whole(ranges, shapes[name][0])]
    return config.n_parameters - sum(map(math.prod, whole))


def describe(frozen: FrozenRows, config: ModelConfig) -> list[str]:
    """For the start: how much is trained; nothing where it is everything."""
    if not frozen:
        return []
    shapes = parameter_shapes(config)
    fixed = sum(
        (high - low) * math.prod(shapes[name][1:]) for name, ranges in frozen.items() for low, high in ranges
    )
    total = config.n_parameters
    return [f"trainable: {total - fixed:,} of {total:,} parameters; the others stay as they are"]


def check_unchanged(
    saved: Sequence[str] | None, trainable: Sequence[str] | None, config: ModelConfig
) -> None:
    """Compare what a checkpoint was trained with to what is to be trained now.

    Raises:
        InputError: it differs: rows that have moments of earlier steps would move though they are frozen.
    """
    if frozen_rows(saved, config) != frozen_rows(trainable, config):
        raise InputError(
            f"--trainable is {_words(trainable)}, in the checkpoint {_words(saved)}: a changed trainable "
            "needs a fresh optimizer: start a stage, or a run with --initial_checkpoint_dir"
        )


def _matches(pattern: str, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> list[str]:
    """The parameters that a pattern names, itself or by a part of the model that they are in."""
    if pattern.endswith(NEW):
        raise InputError(
            f"--trainable {pattern}: the vocabulary of this model was not extended; start from a checkpoint "
            "that convert_hf_checkpoint.py --extension wrote, or give the rows as numbers"
        )
    part = match[1] if (match := _RANGE.fullmatch(pattern)) else pattern
    paths = {name: list(accumulate(name.split("."), "{}.{}".format)) for name in shapes}
    if found := [name for name in shapes if fnmatch.filter(paths[name], part)]:
        return found
    if tied and fnmatch.filter(("lm_head", "lm_head.weight"), part):
        raise InputError(
            f"--trainable {pattern}: this model's head is its embedding (tie_embeddings), one matrix: "
            "give transformer.wte"
        )
    parts = dict.fromkeys(re.sub(r"\.\d+\b", ".*", path) for name in shapes for path in paths[name][:-1])
    raise InputError(f"--trainable {pattern}: no parameter has such a name{suggestion(part, parts)}")


def _rows(pattern: str, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(first, last + 1) of the rows that a pattern means."""
    match = _RANGE.fullmatch(pattern)
    first, last = (int(match[2] or 0), int(match[3] or shape[0])) if match else (0, shape[0])
    if match and len(shape) != 2:
        raise InputError(f"--trainable {pattern}: {name} is no matrix; give it without a range of rows")
    if not first < last <= shape[0]:
        raise InputError(f"--trainable {pattern}: {name} has the rows [0:{shape[0]}]; give a range of these")
    return first, last


def _gaps(ranges: Sequence[tuple[int, int]], n_rows: int) -> tuple[tuple[int, int], ...]:
    """What the ranges leave out of [0, n_rows)."""
    gaps, end = [], 0
    for first, last in [*sorted(ranges), (n_rows, n_rows)]:
        if first > end:
            gaps.append((end, first))
        end = max(end, last)
    return tuple(gaps)


def _is_whole(ranges: tuple[tuple[int, int], ...], n_rows: int) -> bool:
    return ranges == ((0, n_rows),)


def _words(trainable: Sequence[str] | None) -> str:
    return " ".join(trainable) if trainable else "everything"
