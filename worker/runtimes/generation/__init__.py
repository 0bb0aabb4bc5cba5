"""Generates text with a causal language model of the transformers library."""
