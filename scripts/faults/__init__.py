"""The faults of scripts/torture.py.

In: the trainer's options and the name of a fault. Out: an Outcome, which says how far the job came and
whether its state differs from the undisturbed run's. Read faults.py (the processes and the kinds), rank.py
(what happens in one process).
"""
