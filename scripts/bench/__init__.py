"""What the benchmarks share: stores to train on, turns, and the training step timed in a process of its own.

In: a shape or a configuration, and a token store. Out: seconds, tokens a second and peak memory.
Read sample_store.py (data), measurement.py (turns; calls a timed run), measure_step.py (is that run),
step_variants.py (what it times); other_loaders.py serves bench_loader.py alone.
"""
