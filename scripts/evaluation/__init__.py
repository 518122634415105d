"""Tasks, models and results of evaluate.py.

In: a Hugging Face folder and names of tasks. Out: scores. Read harness.py (lm-evaluation-harness as it is
called here), german_tasks.py (presets), harness_03_task.py (prompts of an older harness), results.py (JSON,
TensorBoard, plot).
"""
