"""The commands around training: plan, submit, convert, generate, evaluate, publish, plot, benchmark, check.

In: token stores, runs and checkpoints. Out: jobs, Hugging Face folders, figures. Each file is a command;
what several share lies in bench/ (timing), evaluation/ (scores) and faults/ (of torture.py).
"""
