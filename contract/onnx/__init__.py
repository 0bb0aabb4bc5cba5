"""Judging an ONNX file before anything runs it."""
