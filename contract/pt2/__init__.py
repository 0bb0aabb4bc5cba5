"""Checking whether an exported program (.pt2) is safe to load, without torch and without unpickling."""
