"""Flower, extended: our seams to it."""
