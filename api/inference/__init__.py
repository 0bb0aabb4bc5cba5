"""The Open Inference Protocol v2 with its binary extension: what clients of Triton and KServe speak."""
