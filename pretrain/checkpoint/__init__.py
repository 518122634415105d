"""The checkpoints of a run, written and read by any number of ranks.

In: model, optimizer and state. Out: `iter-*-ckpt.pth` folders (lit_gpt/checkpoint has the format), and the
state back, bit for bit. Open in this order: checkpointer, snapshot, writer, collective.
"""
