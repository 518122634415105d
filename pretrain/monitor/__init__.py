"""What a run reports.

In: figures of steps, on the device. Out: metrics.csv, TensorBoard, Weights & Biases, progress lines. Open in
this order: step_reporter, metrics, boards, epochs. save_errors decides what follows when a write fails.
"""
