"""Explanations as a model gives them: rows in, and for each what every part of its inputs adds to the output."""
