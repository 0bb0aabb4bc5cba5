"""Flower, extended. Knows contract and storage."""
