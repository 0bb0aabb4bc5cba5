"""Runs of recipes that a library fits."""
