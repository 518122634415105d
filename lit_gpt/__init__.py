"""What the model and its data are: pure parts that import none of the other folders."""
