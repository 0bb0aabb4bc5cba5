"""Evaluation jobs: a version's outputs held against what is true."""
