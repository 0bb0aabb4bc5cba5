"""The output folder of a batch, and the parts written into it."""
