"""Token store to checkpoints."""
