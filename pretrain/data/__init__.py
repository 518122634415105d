"""From packed stores to the batches of a step.

In go the run's options, out come `StepBatch`es and what each of them was made of. Open `inputs` (options to
data), `training_data` (sample number to rows), `row_reader`, `batch` (labels are shifted here), `dataloader`
(with `numbering`, step to samples), `shard_cache`, `validation`.
"""
