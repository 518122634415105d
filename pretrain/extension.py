"""`[new]` in `trainable`: the rows from the first new id of an extended vocabulary on, padding included.

It is resolved with the stages, so that the rows are numbers in the run's own state.json and wherever patterns
are compared.
"""

import dataclasses

from pretrain.options import TrainOptions
from pretrain.origins import recorded

NEW = "[new]"


def with_new_rows(options: TrainOptions) -> TrainOptions:
    """Write `[new]` as a range of rows; leave it, for an error that says so, where nothing is new."""
    patterns = options.trainable or []
    if not any(pattern.endswith(NEW) for pattern in patterns):
        return options
    if (extension := recorded(options, "extension")) is None:
        return options
    rows = f"[{extension['first_new_id']}:]"
    resolved = [
        pattern.removesuffix(NEW) + rows if pattern.endswith(NEW) else pattern for pattern in patterns
    ]
    return dataclasses.replace(options, trainable=resolved)
