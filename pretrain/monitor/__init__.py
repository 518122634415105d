"""What a run reports.

In: figures of steps, on the device, and of validations. Out: metrics.csv, validation.csv, TensorBoard,
Weights & Biases, progress lines. Open in this order: step_reporter, metrics, csv_file, boards, epochs.
save_errors decides what follows when a write fails.
"""
