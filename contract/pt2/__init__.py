"""Judging an exported program (.pt2) without torch and without unpickling."""
