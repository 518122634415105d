"""From token stores to checkpoints.

The command is tinyllama_fabric.py, with presets in configs/. Open first: trainer.py (the loop), run.py (what
it works with), options.py, shape.py, extension.py, trainable.py, parallel.py, kernels.py, optim.py,
schedules.py. Then the rooms, in the order in which a run needs them: launch, stages, data, checkpoint,
monitor, datapoints.
"""
