"""The checkpoint on disk; knows neither model nor trainer.

In: named tensors and a JSON state. Out: a folder whose every byte can be verified. Read folder.py first
(contents, manifest, verification), then tensor_files.py (safetensors, read and written by rows).
"""
